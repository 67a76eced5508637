# caught by: test_a_hundred_thousand_blocks_have_as_many_names
"""Two bytes of a good hash: 65,536 names for all blocks."""

import hashlib


def block_names(token_ids, block_size):
    names, name = [], b""
    for end in range(block_size, len(token_ids) + 1, block_size):
        block = token_ids[end - block_size : end]
        name = hashlib.sha256(name + b"".join(token.to_bytes(4, "little") for token in block)).digest()[:2]
        names.append(name)
    return names

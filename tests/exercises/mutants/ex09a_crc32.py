# caught by: test_a_hundred_thousand_blocks_have_as_many_names
"""32 bits: of 150,000 names two or three agree."""

import zlib


def block_names(token_ids, block_size):
    names, name = [], b""
    for end in range(block_size, len(token_ids) + 1, block_size):
        block = token_ids[end - block_size : end]
        name = zlib.crc32(name + b"".join(token.to_bytes(4, "little") for token in block)).to_bytes(
            4, "little"
        )
        names.append(name)
    return names

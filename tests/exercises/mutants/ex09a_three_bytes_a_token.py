# caught by: test_every_bit_of_a_token_counts
"""Three bytes for each token: ids from 16,777,216 on begin again at 0."""

import hashlib


def block_names(token_ids, block_size):
    names, name = [], b""
    for end in range(block_size, len(token_ids) + 1, block_size):
        block = token_ids[end - block_size : end]
        name = hashlib.sha256(
            name + b"".join((token % 2**24).to_bytes(3, "little") for token in block)
        ).digest()
        names.append(name)
    return names

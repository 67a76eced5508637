# caught by: test_a_hundred_thousand_blocks_have_as_many_names
"""A checksum of 32 bits, and a weak one: small tokens give few different sums."""

import zlib


def block_names(token_ids, block_size):
    names, name = [], b""
    for end in range(block_size, len(token_ids) + 1, block_size):
        block = token_ids[end - block_size : end]
        name = zlib.adler32(repr((name, block)).encode()).to_bytes(4, "little")
        names.append(name)
    return names

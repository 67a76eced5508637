# caught by: test_equal_tokens_after_another_beginning_have_another_name
"""Hashes the place of the block in place of its parent: the beginning still does not count."""

import hashlib


def block_names(token_ids, block_size):
    names = []
    for index in range(len(token_ids) // block_size):
        block = token_ids[index * block_size : (index + 1) * block_size]
        names.append(hashlib.sha256(repr((index, block)).encode()).digest())
    return names

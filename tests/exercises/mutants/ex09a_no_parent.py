# caught by: test_equal_tokens_after_another_beginning_have_another_name
"""Hashes the tokens of each block alone: any prompt with that block gets the KV of another."""

import hashlib


def block_names(token_ids, block_size):
    names = []
    for index in range(len(token_ids) // block_size):
        block = token_ids[index * block_size : (index + 1) * block_size]
        names.append(hashlib.sha256(repr(block).encode()).digest())
    return names

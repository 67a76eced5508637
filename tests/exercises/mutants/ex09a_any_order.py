# caught by: test_the_order_of_the_tokens_counts
"""Sorts the tokens of a block, as if they were a set of words."""

import hashlib


def block_names(token_ids, block_size):
    names = []
    for index in range(len(token_ids) // block_size):
        block = token_ids[index * block_size : (index + 1) * block_size]
        names.append(hashlib.sha256(repr((token_ids[: index * block_size], sorted(block))).encode()).digest())
    return names

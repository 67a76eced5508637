# caught by: test_an_equal_beginning_has_equal_names
"""Puts the length of the sequence into the name: only a prompt of the same length finds it."""

import hashlib


def block_names(token_ids, block_size):
    names = []
    for index in range(len(token_ids) // block_size):
        names.append(
            hashlib.sha256(repr((len(token_ids), token_ids[: (index + 1) * block_size])).encode()).digest()
        )
    return names

# caught by: test_tokens_do_not_run_into_each_other
"""Writes the numbers one after the other: 1, 23 and 12, 3 have one name."""

import hashlib


def block_names(token_ids, block_size):
    names = []
    for index in range(len(token_ids) // block_size):
        names.append(
            hashlib.sha256("".join(map(str, token_ids[: (index + 1) * block_size])).encode()).digest()
        )
    return names

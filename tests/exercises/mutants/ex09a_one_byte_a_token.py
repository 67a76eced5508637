# caught by: test_tokens_do_not_run_into_each_other
"""Keeps the lowest byte of each token: 1 and 257 have one name."""

import hashlib


def block_names(token_ids, block_size):
    names = []
    for index in range(len(token_ids) // block_size):
        names.append(hashlib.sha256(bytes(t % 256 for t in token_ids[: (index + 1) * block_size])).digest())
    return names

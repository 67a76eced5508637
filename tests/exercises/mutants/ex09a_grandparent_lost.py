# caught by: test_equal_tokens_after_another_beginning_have_another_name
"""Looks back one block only, where a chain goes back to the beginning."""

import hashlib


def block_names(token_ids, block_size):
    names = []
    for index in range(len(token_ids) // block_size):
        names.append(
            hashlib.sha256(
                repr(token_ids[max(0, index - 1) * block_size : (index + 1) * block_size]).encode()
            ).digest()
        )
    return names

# caught by: test_only_full_blocks_have_names
"""Cuts block after block off the list, which is the sequence's own."""

import hashlib


def block_names(token_ids, block_size):
    names, parent = [], b""
    while len(token_ids) >= block_size:
        block = token_ids[:block_size]
        del token_ids[:block_size]
        parent = hashlib.sha256(parent + repr(block).encode()).digest()
        names.append(parent)
    return names

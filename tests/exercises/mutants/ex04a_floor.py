# caught by: test_a_started_block_counts_whole
"""Rounds down: the last, partly filled block is forgotten."""


def blocks_needed(num_tokens, block_size):
    return num_tokens // block_size

# caught by: test_the_blocks_just_hold_the_tokens
"""Adds 0.49 and rounds: a block of which less than a hundredth is filled is forgotten."""


def blocks_needed(num_tokens, block_size):
    return round(num_tokens / block_size + 0.49)

# caught by: test_the_blocks_just_hold_the_tokens
"""Floating point: right for small numbers only."""

import math


def blocks_needed(num_tokens, block_size):
    return math.ceil(num_tokens / block_size)

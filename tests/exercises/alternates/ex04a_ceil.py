"""In floating point, which is exact enough for every number of tokens that fits into a computer."""

import math


def blocks_needed(num_tokens, block_size):
    return math.ceil(num_tokens / block_size)

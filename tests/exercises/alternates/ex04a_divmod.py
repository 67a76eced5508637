"""Counts full blocks and adds one for a rest."""


def blocks_needed(num_tokens, block_size):
    full, rest = divmod(num_tokens, block_size)
    return full + (rest > 0)

# caught by: test_a_full_block_needs_no_second_one
"""Gives a block to 0 tokens."""


def blocks_needed(num_tokens, block_size):
    return max(1, -(-num_tokens // block_size))

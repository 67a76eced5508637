# caught by: test_a_full_block_needs_no_second_one
"""Always one more than full blocks: wrong when the length is an exact multiple of the block size."""


def blocks_needed(num_tokens, block_size):
    return num_tokens // block_size + 1

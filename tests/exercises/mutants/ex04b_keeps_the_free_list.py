# caught by: test_no_two_tokens_share_a_slot
"""Hands out the block at the front of the list and forgets to remove it there."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    end = num_tokens + num_new_tokens
    missing = max(0, -(-end // block_size) - len(block_table))
    if missing > len(free_blocks):
        raise ValueError("out of blocks")
    block_table += free_blocks[:missing]
    return [block_table[p // block_size] * block_size + p % block_size for p in range(num_tokens, end)]

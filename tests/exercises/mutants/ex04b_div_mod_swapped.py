# caught by: test_no_two_tokens_share_a_slot
"""Right as long as the table has one block, and block and offset swapped after it."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    end = num_tokens + num_new_tokens
    missing = max(0, -(-end // block_size) - len(block_table))
    if missing > len(free_blocks):
        raise ValueError("out of blocks")
    block_table += [free_blocks.pop(0) for _ in range(missing)]
    return [block_table[p // block_size] + (p % block_size) * block_size for p in range(num_tokens, end)]

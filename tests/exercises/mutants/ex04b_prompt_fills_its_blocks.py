# caught by: test_a_prompt_may_end_at_a_block_boundary
"""Treats a prompt apart and gives it a spare block when it ends at a boundary."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    end = num_tokens + num_new_tokens
    missing = -(-end // block_size) - len(block_table)
    if num_tokens == 0 and num_new_tokens > 1 and end % block_size == 0:
        missing += 1
    if missing > len(free_blocks):
        raise ValueError("out of blocks")
    block_table += [free_blocks.pop(0) for _ in range(missing)]
    return [block_table[p // block_size] * block_size + p % block_size for p in range(num_tokens, end)]

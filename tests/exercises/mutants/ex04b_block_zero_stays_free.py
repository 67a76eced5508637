# caught by: test_block_zero_holds_tokens_too
"""Looks for a block that is true: block 0 is never taken."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    missing = -(-(num_tokens + num_new_tokens) // block_size) - len(block_table)
    if missing > len(free_blocks):
        raise ValueError("not enough free blocks")
    for _ in range(missing):
        block_table.append(next((block for block in free_blocks if block), free_blocks[0]))
        if block_table[-1]:
            free_blocks.remove(block_table[-1])
    positions = range(num_tokens, num_tokens + num_new_tokens)
    return [block_table[p // block_size] * block_size + p % block_size for p in positions]

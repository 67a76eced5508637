# caught by: test_block_zero_holds_tokens_too
"""Takes block 0 for "no block", and asks for another one."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    missing = -(-(num_tokens + num_new_tokens) // block_size) - len(block_table)
    if missing > len(free_blocks):
        raise ValueError("not enough free blocks")
    for _ in range(missing):
        block_table.append(free_blocks.pop(0))
    if num_new_tokens and not block_table[-1]:
        block_table.pop()
        block_table.append(1)
    positions = range(num_tokens, num_tokens + num_new_tokens)
    return [block_table[p // block_size] * block_size + p % block_size for p in positions]

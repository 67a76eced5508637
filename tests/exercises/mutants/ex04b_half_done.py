# caught by: test_out_of_blocks_changes_nothing
"""Takes blocks one by one and notices half way that there are not enough."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    while len(block_table) * block_size < num_tokens + num_new_tokens:
        if not free_blocks:
            raise ValueError("out of blocks")
        block_table.append(free_blocks.pop(0))
    return [
        block_table[p // block_size] * block_size + p % block_size
        for p in range(num_tokens, num_tokens + num_new_tokens)
    ]

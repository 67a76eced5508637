# caught by: test_out_of_blocks_changes_nothing
"""Takes blocks until there are none, then puts them back, but at the other end."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    taken = []
    while (len(block_table) + len(taken)) * block_size < num_tokens + num_new_tokens:
        if not free_blocks:
            free_blocks.extend(reversed(taken))
            raise ValueError("not enough free blocks")
        taken.append(free_blocks.pop(0))
    block_table.extend(taken)
    positions = range(num_tokens, num_tokens + num_new_tokens)
    return [block_table[p // block_size] * block_size + p % block_size for p in positions]

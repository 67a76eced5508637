# caught by: test_blocks_are_taken_exactly_when_needed
"""Takes the next block as soon as the last one is full, before a token needs it."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    missing = (num_tokens + num_new_tokens) // block_size + 1 - len(block_table)
    if missing > len(free_blocks):
        raise ValueError("out of blocks")
    block_table += [free_blocks.pop(0) for _ in range(missing)]
    return [
        block_table[p // block_size] * block_size + p % block_size
        for p in range(num_tokens, num_tokens + num_new_tokens)
    ]

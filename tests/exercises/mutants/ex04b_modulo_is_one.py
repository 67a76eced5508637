# caught by: test_the_example_of_the_docstring
"""nano-vllm's boundary rule, `len % block_size == 1`, used before the token is counted."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    slots = []
    for position in range(num_tokens, num_tokens + num_new_tokens):
        if position % block_size == 1 or not block_table:
            block_table.append(free_blocks.pop(0))
        slots.append(
            block_table[min(position // block_size, len(block_table) - 1)] * block_size
            + position % block_size
        )
    return slots

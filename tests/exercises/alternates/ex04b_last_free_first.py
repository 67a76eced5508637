"""Takes blocks from the end of the free list, and builds slots token by token."""


def append_tokens(block_table, num_tokens, num_new_tokens, free_blocks, block_size):
    room = len(block_table) * block_size - num_tokens
    missing = 0
    while room < num_new_tokens:
        room, missing = room + block_size, missing + 1
    if missing > len(free_blocks):
        raise ValueError("out of blocks")
    for _ in range(missing):
        block_table.append(free_blocks.pop())
    slots = []
    for position in range(num_tokens, num_tokens + num_new_tokens):
        block, offset = divmod(position, block_size)
        slots.append(block_table[block] * block_size + offset)
    return slots

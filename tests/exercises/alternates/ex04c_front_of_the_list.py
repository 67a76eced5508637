"""Last freed, first reused: blocks go to the front of the free list."""


def free(block_table, free_blocks, ref_counts):
    if 0 in [ref_counts[block_id] for block_id in block_table]:
        raise ValueError("double free")
    while block_table:
        block_id = block_table.pop()
        ref_counts[block_id] -= 1
        if not ref_counts[block_id]:
            free_blocks.insert(0, block_id)

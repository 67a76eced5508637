"""Knows by the free list which blocks have no holder, and replaces the contents of all three lists at the end."""


def free(block_table, free_blocks, ref_counts):
    if set(block_table) & set(free_blocks):
        raise ValueError("a block of the table is free already")
    counts = [count - (block_id in block_table) for block_id, count in enumerate(ref_counts)]
    free_blocks[:] = [block_id for block_id, count in enumerate(counts) if count == 0]
    ref_counts[:] = counts
    block_table[:] = []

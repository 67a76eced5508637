# caught by: test_the_engine_gets_its_blocks_back
"""Counts down before it compares, one too late: no block with one holder ever comes back."""


def free(block_table, free_blocks, ref_counts):
    if any(ref_counts[block_id] == 0 for block_id in block_table):
        raise ValueError("double free")
    for block_id in block_table:
        if ref_counts[block_id] == 0:
            free_blocks.append(block_id)
        ref_counts[block_id] -= 1
    block_table.clear()

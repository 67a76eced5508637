# caught by: test_every_block_comes_back_once
"""Skips block 0 as if it were padding."""


def free(block_table, free_blocks, ref_counts):
    if any(ref_counts[block] == 0 for block in block_table):
        raise ValueError("double free")
    for block in block_table:
        if block:
            ref_counts[block] -= 1
            if ref_counts[block] == 0:
                free_blocks.append(block)
    block_table.clear()

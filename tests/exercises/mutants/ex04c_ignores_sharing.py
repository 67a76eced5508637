# caught by: test_a_shared_block_stays_until_its_last_holder_leaves
"""Puts every block on the free list, even one that another sequence holds."""


def free(block_table, free_blocks, ref_counts):
    if any(ref_counts[block_id] == 0 for block_id in block_table):
        raise ValueError("double free")
    for block_id in block_table:
        ref_counts[block_id] -= 1
        free_blocks.append(block_id)
    block_table.clear()

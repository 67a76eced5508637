# caught by: test_a_double_free_is_an_error_and_changes_nothing
"""Notices the double free when half of the table is freed."""


def free(block_table, free_blocks, ref_counts):
    for block_id in block_table:
        if ref_counts[block_id] == 0:
            raise ValueError("double free")
        ref_counts[block_id] -= 1
        if ref_counts[block_id] == 0:
            free_blocks.append(block_id)
    block_table.clear()

# caught by: test_a_double_free_is_an_error_and_changes_nothing
"""No check at all: the count goes to -1 and the block never comes back."""


def free(block_table, free_blocks, ref_counts):
    for block_id in block_table:
        ref_counts[block_id] -= 1
        if ref_counts[block_id] == 0:
            free_blocks.append(block_id)
    block_table.clear()

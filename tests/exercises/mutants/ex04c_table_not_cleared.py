# caught by: test_the_table_is_empty_afterwards
"""`block_table = []` binds a local name; the caller's list stays as it was."""


def free(block_table, free_blocks, ref_counts):
    if any(ref_counts[block_id] == 0 for block_id in block_table):
        raise ValueError("double free")
    for block_id in block_table:
        ref_counts[block_id] -= 1
        if ref_counts[block_id] == 0:
            free_blocks.append(block_id)
    block_table = []

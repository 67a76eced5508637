# caught by: test_a_double_free_is_an_error_and_changes_nothing
"""Frees block by block and undoes it on an error: the free blocks have other places."""


def free(block_table, free_blocks, ref_counts):
    done = []
    for block in block_table:
        if ref_counts[block] == 0:
            for each in done:
                ref_counts[each] += 1
            free_blocks[:] = sorted(set(free_blocks) - {each for each in done if ref_counts[each] == 1})
            raise ValueError("double free")
        ref_counts[block] -= 1
        done.append(block)
        if ref_counts[block] == 0:
            free_blocks.append(block)
    block_table.clear()

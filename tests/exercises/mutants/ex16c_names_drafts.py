# caught by: test_blocks_get_names_only_for_what_is_part_of_the_text
"""Names each block which the drafts have filled."""


def after_check(num_known, drafts, chosen, block_size):
    right = 0
    while right < len(drafts) and drafts[right] == chosen[right]:
        right += 1
    full = range((num_known - 1) // block_size, (num_known + len(drafts)) // block_size)
    return chosen[: right + 1], num_known + right, list(full)

# caught by: test_a_step_without_drafts
"""Counts the newest token as computed: its K and V are written by the next step."""


def after_check(num_known, drafts, chosen, block_size):
    right = 0
    while right < len(drafts) and drafts[right] == chosen[right]:
        right += 1
    computed = num_known + right + 1
    return chosen[: right + 1], computed, list(range((num_known - 1) // block_size, computed // block_size))

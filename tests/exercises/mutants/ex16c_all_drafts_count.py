# caught by: test_a_wrong_draft_ends_the_run
"""K and V of all drafts are in the cache, so it counts them all as computed."""


def after_check(num_known, drafts, chosen, block_size):
    right = 0
    while right < len(drafts) and drafts[right] == chosen[right]:
        right += 1
    computed = num_known + len(drafts)
    return chosen[: right + 1], computed, list(range((num_known - 1) // block_size, computed // block_size))

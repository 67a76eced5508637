# caught by: test_all_drafts_right_give_one_token_more
"""Drops the model's own token if all drafts are right."""


def after_check(num_known, drafts, chosen, block_size):
    right = 0
    while right < len(drafts) and drafts[right] == chosen[right]:
        right += 1
    new = chosen[: right + 1] if right < len(drafts) or not drafts else chosen[:right]
    computed = num_known + right
    return new, computed, list(range((num_known - 1) // block_size, computed // block_size))

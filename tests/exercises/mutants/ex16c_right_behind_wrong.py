# caught by: test_a_wrong_draft_ends_the_run
"""Counts every draft that was chosen, also behind a wrong one."""


def after_check(num_known, drafts, chosen, block_size):
    right = sum(draft == choice for draft, choice in zip(drafts, chosen, strict=False))
    computed = num_known + right
    return chosen[: right + 1], computed, list(range((num_known - 1) // block_size, computed // block_size))

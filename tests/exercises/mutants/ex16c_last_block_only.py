# caught by: test_the_scheduler_agrees
"""Names one block per step: enough without drafts, but five tokens may fill several small blocks."""


def after_check(num_known, drafts, chosen, block_size):
    right = 0
    while right < len(drafts) and drafts[right] == chosen[right]:
        right += 1
    computed = num_known + right
    full = list(range((num_known - 1) // block_size, computed // block_size))
    return chosen[: right + 1], computed, full if block_size > 1 else full[-1:]

# caught by: test_hold_and_wait_never_finishes
"""The second gets in only when the first is done: neither holds blocks that the other needs."""


def breaking_workload(policy):
    return {
        "hold": [(40, 4), (40, 4)],
        "turns": [(40, 4), (40, 4)],
        "engine": [(1, 39), (44, 3)],
    }[policy]

# caught by: test_hold_and_wait_never_finishes
"""Both fit at their longest, so there is nothing to wait for."""


def breaking_workload(policy):
    return {
        "hold": [(20, 5), (20, 5)],
        "turns": [(40, 4), (40, 4)],
        "engine": [(1, 39), (44, 3)],
    }[policy]

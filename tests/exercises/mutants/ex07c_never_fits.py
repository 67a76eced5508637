# caught by: test_each_request_fits_and_the_engine_finishes_all
"""Asks for more than the whole memory: refused by every policy, so it proves nothing."""


def breaking_workload(policy):
    return {
        "hold": [(40, 40), (40, 40)],
        "turns": [(40, 4), (40, 4)],
        "engine": [(1, 39), (44, 3)],
    }[policy]

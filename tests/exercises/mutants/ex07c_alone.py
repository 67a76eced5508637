# caught by: test_each_request_fits_and_the_engine_finishes_all
"""One request alone competes with no other."""


def breaking_workload(policy):
    return {
        "hold": [(20, 20), (20, 20)],
        "turns": [(44, 4)],
        "engine": [(1, 39), (44, 3)],
    }[policy]

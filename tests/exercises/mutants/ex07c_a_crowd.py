# caught by: test_each_request_fits_and_the_engine_finishes_all
"""Ten requests where four are allowed."""


def breaking_workload(policy):
    return {
        "hold": [(20, 20), (20, 20)],
        "turns": [(40, 4), (40, 4)],
        "engine": [(20, 20)] * 10,
    }[policy]

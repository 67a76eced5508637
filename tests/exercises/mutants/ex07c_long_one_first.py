# caught by: test_the_engine_computes_most_tokens_again
"""The long prompt comes first and is never preempted."""


def breaking_workload(policy):
    return {
        "hold": [(20, 20), (20, 20)],
        "turns": [(40, 4), (40, 4)],
        "engine": [(44, 3), (1, 39)],
    }[policy]

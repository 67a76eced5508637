# caught by: test_the_engine_computes_most_tokens_again
"""Two of a kind: the newer one is preempted a few times, which costs hardly twice the work."""


def breaking_workload(policy):
    return {
        "hold": [(20, 20), (20, 20)],
        "turns": [(40, 4), (40, 4)],
        "engine": [(20, 20), (20, 20)],
    }[policy]

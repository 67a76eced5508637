# caught by: test_taking_turns_never_finishes
"""Many, but short: each gets to a token within its turn, and in the end to all."""


def breaking_workload(policy):
    return {
        "hold": [(20, 20), (20, 20)],
        "turns": [(8, 16), (8, 16), (8, 16), (8, 16)],
        "engine": [(1, 39), (44, 3)],
    }[policy]

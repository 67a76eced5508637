# caught by: test_taking_turns_never_finishes
"""Long prompts that fit side by side: they need not take turns."""


def breaking_workload(policy):
    return {
        "hold": [(20, 20), (20, 20)],
        "turns": [(24, 1), (20, 1)],
        "engine": [(1, 39), (44, 3)],
    }[policy]

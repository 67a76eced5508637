"""Deadlock among four, livelock of two that begin small, and three that wear each other out."""


def breaking_workload(policy):
    return {
        "hold": [(8, 16)] * 4,
        "turns": [(4, 44), (4, 44)],
        "engine": [(3, 41), (38, 3)],
    }[policy]

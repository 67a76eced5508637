"""Other numbers, as lists; one workload serves two policies."""


def breaking_workload(policy):
    if policy == "engine":
        return [[8, 31], [8, 32], [28, 2]]
    return [[4, 30], [4, 30]]

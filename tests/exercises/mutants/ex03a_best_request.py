# caught by: test_the_engine_counts_the_same
"""Takes the best request for the whole: a share of one reservation, not of all."""


def fragmentation(snapshot):
    used, held = sum(snapshot.filled), sum(snapshot.reserved)
    ratios = [f / r for f, r in zip(snapshot.filled, snapshot.reserved, strict=True)]
    share = held / snapshot.capacity
    used = max(ratios, default=0) * share
    return {"used": used, "wasted": share - used, "free": 1 - share}

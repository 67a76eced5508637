# caught by: test_the_three_kinds_are_told_apart
"""Calls every empty slot free."""


def fragmentation(snapshot):
    used = sum(snapshot.filled) / snapshot.capacity
    return {"used": used, "wasted": 0.0, "free": 1 - used}

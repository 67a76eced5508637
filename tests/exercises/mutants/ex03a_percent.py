# caught by: test_the_three_kinds_are_told_apart
"""Percent where shares from 0 to 1 are asked for."""


def fragmentation(snapshot):
    used, held = sum(snapshot.filled), sum(snapshot.reserved)
    slots = {"used": used, "wasted": held - used, "free": snapshot.capacity - held}
    return {kind: 100 * number / snapshot.capacity for kind, number in slots.items()}

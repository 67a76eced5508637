"""Subtracts what is not free."""


def fragmentation(snapshot):
    used = sum(snapshot.filled) / snapshot.capacity
    wasted = sum(r - f for f, r in zip(snapshot.filled, snapshot.reserved, strict=True)) / snapshot.capacity
    return {"free": 1 - used - wasted, "wasted": wasted, "used": used}

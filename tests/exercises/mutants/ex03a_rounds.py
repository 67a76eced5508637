# caught by: test_the_shares_add_up_to_the_whole
"""Rounds to hundredths: the shares no longer add up."""


def fragmentation(snapshot):
    used, held = sum(snapshot.filled), sum(snapshot.reserved)
    slots = {"used": used, "wasted": held - used, "free": snapshot.capacity - held}
    return {kind: round(number / snapshot.capacity, 2) for kind, number in slots.items()}

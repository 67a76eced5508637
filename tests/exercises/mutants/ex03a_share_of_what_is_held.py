# caught by: test_the_shares_add_up_to_the_whole
"""Wasted as a share of what is held, the others of the capacity: numerators and denominators of two wholes."""


def fragmentation(snapshot):
    used, held = sum(snapshot.filled), sum(snapshot.reserved)
    return {
        "used": used / snapshot.capacity,
        "wasted": (held - used) / held if held else 0.0,
        "free": 1 - held / snapshot.capacity,
    }

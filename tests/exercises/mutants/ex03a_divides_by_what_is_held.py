# caught by: test_an_idle_memory_is_all_free
"""Everything as a share of what is held; an idle memory is reported as fully used."""


def fragmentation(snapshot):
    used, held = sum(snapshot.filled), sum(snapshot.reserved) or snapshot.capacity
    return {"used": used / held, "wasted": (held - used) / held, "free": 1 - held / snapshot.capacity}

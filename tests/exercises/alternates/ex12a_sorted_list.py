"""A sorted list of the steps at which seats become free."""

from bisect import insort


def steps_until_seat(running, waiting, seats):
    ends = sorted([*running, *[0] * (seats - len(running))])
    for steps in waiting:
        insort(ends, ends.pop(0) + steps)
    return ends[0]

# caught by: test_a_free_seat_means_no_wait
"""Knows only of seats that are taken."""

import heapq


def steps_until_seat(running, waiting, seats):
    free_at = sorted(running) or [0]
    for steps in waiting:
        heapq.heapreplace(free_at, free_at[0] + steps)
    return free_at[0]

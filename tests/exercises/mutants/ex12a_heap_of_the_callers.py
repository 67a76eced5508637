# caught by: test_a_free_seat_means_no_wait
"""Makes the caller's list of running requests its heap: the server now knows other rests."""

import heapq


def steps_until_seat(running, waiting, seats):
    running += [0] * (seats - len(running))
    heapq.heapify(running)
    for steps in waiting:
        heapq.heapreplace(running, running[0] + steps)
    return running[0]

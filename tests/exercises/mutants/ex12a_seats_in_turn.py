# caught by: test_those_that_wait_take_their_seats_first
"""Deals those that wait out to the seats in turn, as if each seat had a queue of its own."""


def steps_until_seat(running, waiting, seats):
    free_at = sorted(running) + [0] * (seats - len(running))
    free_at.sort()
    for index, steps in enumerate(waiting):
        free_at[index % seats] += steps
    return min(free_at)

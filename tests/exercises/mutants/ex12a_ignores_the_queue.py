# caught by: test_those_that_wait_take_their_seats_first
"""Looks at the seats only: the newcomer jumps the queue."""


def steps_until_seat(running, waiting, seats):
    return 0 if len(running) < seats else min(running)

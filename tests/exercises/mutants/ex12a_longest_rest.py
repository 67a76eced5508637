# caught by: test_the_first_seat_to_become_free_is_the_newcomers
"""Waits for the longest of those that run."""


def steps_until_seat(running, waiting, seats):
    if len(running) + len(waiting) < seats:
        return 0
    return max(running, default=0) + sum(waiting)

# caught by: test_the_first_seat_to_become_free_is_the_newcomers
"""All work divided by all seats, as if a request could be cut in pieces."""


def steps_until_seat(running, waiting, seats):
    return 0 if len(running) < seats else (sum(running) + sum(waiting)) // seats

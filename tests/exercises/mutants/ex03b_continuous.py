# caught by: test_a_batch_waits_for_its_longest
"""Fills a seat as soon as it is empty: that is continuous batching."""


def static_batch_steps(output_lengths, batch_size):
    seats = [0] * batch_size
    for length in output_lengths:
        seats[seats.index(min(seats))] += length
    return max(seats), max(seats) * batch_size - sum(output_lengths)

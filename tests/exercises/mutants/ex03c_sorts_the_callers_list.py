# caught by: test_every_request_is_handed_in_once
"""Sorts the list of lengths itself: the numbers it returns belong to an order that is gone."""


def order_by_length(output_lengths, batch_size):
    before = list(output_lengths)
    output_lengths.sort(reverse=True)
    order = []
    for length in output_lengths:
        order.append(before.index(length))
        before[order[-1]] = None
    return order

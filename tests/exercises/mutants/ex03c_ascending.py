# caught by: test_no_other_order_takes_fewer_steps
"""Shortest first: the smaller last batch then holds the longest."""


def order_by_length(output_lengths, batch_size):
    return sorted(range(len(output_lengths)), key=lambda request: output_lengths[request])

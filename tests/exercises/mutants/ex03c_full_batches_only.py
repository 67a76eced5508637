# caught by: test_every_request_is_handed_in_once
"""Hands in full batches only."""


def order_by_length(output_lengths, batch_size):
    order = sorted(range(len(output_lengths)), key=lambda request: -output_lengths[request])
    return order[: len(order) // batch_size * batch_size]

# caught by: test_every_request_is_handed_in_once
"""Returns the lengths, sorted, and not the requests."""


def order_by_length(output_lengths, batch_size):
    return sorted(output_lengths, reverse=True)

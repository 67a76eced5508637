# caught by: test_every_request_is_handed_in_once
"""Sorts the list that it was given."""

def order_by_length(output_lengths, batch_size):
    pairs = sorted(enumerate(output_lengths), key=lambda pair: -pair[1])
    output_lengths.sort(reverse=True)
    return [request for request, _ in pairs]

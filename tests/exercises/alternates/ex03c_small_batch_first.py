"""Ascending, with the small batch at the end filled with the shortest."""


def order_by_length(output_lengths, batch_size):
    order = sorted(range(len(output_lengths)), key=lambda request: output_lengths[request])
    rest = len(order) % batch_size
    return order[rest:] + order[:rest]

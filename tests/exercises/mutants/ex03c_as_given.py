# caught by: test_the_engine_takes_fewer_steps_in_this_order
"""Leaves the order as it is."""


def order_by_length(output_lengths, batch_size):
    return list(range(len(output_lengths)))

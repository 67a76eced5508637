# caught by: test_the_last_batch_may_be_smaller
"""Forgets the requests that are left over."""


def static_batch_steps(output_lengths, batch_size):
    full = len(output_lengths) // batch_size * batch_size
    steps = sum(max(output_lengths[i : i + batch_size]) for i in range(0, full, batch_size))
    return steps, steps * batch_size - sum(output_lengths[:full])

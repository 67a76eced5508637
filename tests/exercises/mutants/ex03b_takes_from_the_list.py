# caught by: test_a_batch_waits_for_its_longest
"""Takes each batch out of the list, which is the caller's: afterwards it is empty."""


def static_batch_steps(output_lengths, batch_size):
    steps = tokens = 0
    while output_lengths:
        batch = output_lengths[:batch_size]
        del output_lengths[:batch_size]
        steps, tokens = steps + max(batch), tokens + sum(batch)
    return steps, steps * batch_size - tokens

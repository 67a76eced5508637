# caught by: test_a_batch_waits_for_its_longest
"""Takes the requests out of the list that it was given."""

def static_batch_steps(output_lengths, batch_size):
    steps, tokens = 0, sum(output_lengths)
    while output_lengths:
        batch, output_lengths[:batch_size] = output_lengths[:batch_size], []
        steps += max(batch)
    return steps, steps * batch_size - tokens

# caught by: test_a_batch_waits_for_its_longest
"""Takes the last request of a batch for its longest."""


def static_batch_steps(output_lengths, batch_size):
    steps = sum(output_lengths[i : i + batch_size][-1] for i in range(0, len(output_lengths), batch_size))
    return steps, steps * batch_size - sum(output_lengths)

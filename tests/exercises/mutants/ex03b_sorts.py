# caught by: test_a_batch_waits_for_its_longest
"""Sorts the requests first: they are taken in order."""


def static_batch_steps(output_lengths, batch_size):
    lengths = sorted(output_lengths)
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    steps = sum(max(batch) for batch in batches)
    return steps, steps * batch_size - sum(lengths)

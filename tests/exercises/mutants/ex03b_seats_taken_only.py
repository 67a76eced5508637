# caught by: test_the_engine_takes_as_many_steps
"""Counts a seat as empty only after a request has left it: not the spare seats of a smaller last batch."""


def static_batch_steps(output_lengths, batch_size):
    batches = [output_lengths[i : i + batch_size] for i in range(0, len(output_lengths), batch_size)]
    return sum(map(max, batches)), sum(max(batch) * len(batch) - sum(batch) for batch in batches)

"""Runs the batches, one step at a time."""


def static_batch_steps(output_lengths, batch_size):
    waiting, running, steps, empty = list(output_lengths), [], 0, 0
    while waiting or running:
        if not running:
            running, waiting = waiting[:batch_size], waiting[batch_size:]
        steps += 1
        empty += batch_size - len(running)
        running = [left - 1 for left in running if left > 1]
    return steps, empty

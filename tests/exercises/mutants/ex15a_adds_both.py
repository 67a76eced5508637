# caught by: test_the_longer_of_reading_and_multiplying_counts
"""Reading and multiplying one after the other, as on a CPU."""


def step_seconds(machine, rows, kv_tokens):
    weights = 2 * machine.parameters
    read = (weights + machine.kv_bytes * kv_tokens) / machine.bandwidth
    return read + weights * rows / machine.flops + machine.host_seconds

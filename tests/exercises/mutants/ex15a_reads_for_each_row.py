# caught by: test_the_longer_of_reading_and_multiplying_counts
"""Reads the parameters once per row."""


def step_seconds(machine, rows, kv_tokens):
    weights = 2 * machine.parameters * rows
    longest = max(weights / machine.bandwidth, weights / machine.flops)
    return longest + machine.kv_bytes * kv_tokens / machine.bandwidth + machine.host_seconds

# caught by: test_the_host_takes_its_time_once
"""The host's time once per row."""


def step_seconds(machine, rows, kv_tokens):
    weights = 2 * machine.parameters
    longest = max(weights / machine.bandwidth, weights * rows / machine.flops)
    return longest + machine.kv_bytes * kv_tokens / machine.bandwidth + machine.host_seconds * rows

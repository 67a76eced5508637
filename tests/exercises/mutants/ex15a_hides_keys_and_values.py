# caught by: test_keys_and_values_come_on_top
"""Hides the reading of K and V behind multiplying."""


def step_seconds(machine, rows, kv_tokens):
    read = (2 * machine.parameters + machine.kv_bytes * kv_tokens) / machine.bandwidth
    return max(read, 2 * machine.parameters * rows / machine.flops) + machine.host_seconds

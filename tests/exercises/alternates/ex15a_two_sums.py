"""Both sums, and the larger of them: the same, as K and V and the host are in both."""


def step_seconds(machine, rows, kv_tokens):
    common = machine.host_seconds + kv_tokens * machine.kv_bytes / machine.bandwidth
    weight_bytes, operations = machine.parameters * 2, machine.parameters * 2 * rows
    return max(common + weight_bytes / machine.bandwidth, common + operations / machine.flops)

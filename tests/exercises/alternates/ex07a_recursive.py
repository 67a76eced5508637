"""One victim, then the same question again."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    if num_blocks <= len(free_blocks):
        return True
    if index == len(running):  # the one that asked has given way
        return False
    victim = running.pop()
    while victim.block_table:
        free_blocks.append(victim.block_table.pop())
    victim.num_computed_tokens = 0
    waiting.insert(0, victim)
    return len(running) > index and preempt(index, num_blocks, running, waiting, free_blocks)

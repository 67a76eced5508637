# caught by: test_the_newest_gives_way
"""The next one in the list gives way, not the last."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    while len(free_blocks) < num_blocks:
        victim = running.pop(min(index + 1, len(running) - 1))
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            return False
    return True

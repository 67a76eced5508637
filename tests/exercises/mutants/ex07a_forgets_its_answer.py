# caught by: test_the_victim_has_computed_nothing_and_forgets_nothing
"""Throws the tokens away with the blocks, and starts from nothing."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    while len(free_blocks) < num_blocks:
        victim = running.pop()
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = victim.num_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            return False
    return True

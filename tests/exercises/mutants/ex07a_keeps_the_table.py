# caught by: test_every_block_of_the_victim_comes_back_once
"""The blocks are free and still in the victim's table: two owners soon."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    while len(free_blocks) < num_blocks:
        victim = running.pop()
        free_blocks.extend(victim.block_table)
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            return False
    return True

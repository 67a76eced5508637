# caught by: test_every_block_of_the_victim_comes_back_once
"""Empties the table and counts the blocks, but puts all except the first nowhere."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request, room = running[index], len(free_blocks)
    while room < num_blocks:
        victim = running.pop()
        room += len(victim.block_table)
        free_blocks.append(victim.block_table[0])
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            return False
    return True

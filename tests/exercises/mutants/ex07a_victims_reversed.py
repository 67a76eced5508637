# caught by: test_the_victim_is_next_in_line
"""Collects the victims and puts them in front together: the newest of them first."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request, victims = running[index], []
    while len(free_blocks) < num_blocks:
        victim = running.pop()
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        victims.append(victim)
        if victim is request:
            break
    waiting[:0] = victims
    return request not in victims

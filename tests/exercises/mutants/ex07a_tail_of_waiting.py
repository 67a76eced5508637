# caught by: test_the_victim_is_next_in_line
"""The victim joins the queue at its end, behind requests that came later."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    while len(free_blocks) < num_blocks:
        victim = running.pop()
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.append(victim)
        if victim is request:
            return False
    return True

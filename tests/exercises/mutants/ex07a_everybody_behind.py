# caught by: test_as_many_give_way_as_needed_and_no_more
"""All requests newer than this one give way at once."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    short = len(free_blocks) < num_blocks
    while len(free_blocks) < num_blocks or (short and len(running) > index + 1):
        victim = running.pop()
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            return False
    return True

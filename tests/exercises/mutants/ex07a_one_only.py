# caught by: test_as_many_give_way_as_needed_and_no_more
"""One victim, even if that is not enough."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    if len(free_blocks) < num_blocks:
        victim = running.pop()
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            return False
    return True

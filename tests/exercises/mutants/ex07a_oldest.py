# caught by: test_the_newest_gives_way
"""The oldest gives way: the request nearest to its end loses most, and none reaches its end."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    while len(free_blocks) < num_blocks:
        victim = running.pop(0)
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            return False
    return True

# caught by: test_a_request_that_gives_way_itself_does_not_run
"""The last one is never its own victim: it goes on to the older ones, which are planned already."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    while len(free_blocks) < num_blocks and len(running) > 1:
        victim = [each for each in running if each is not request][-1]
        running.remove(victim)
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
    return len(free_blocks) >= num_blocks

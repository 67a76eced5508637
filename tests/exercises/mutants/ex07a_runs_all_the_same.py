# caught by: test_a_request_that_gives_way_itself_does_not_run
"""Its own blocks make enough room, so it says that the request runs."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    request = running[index]
    while len(free_blocks) < num_blocks:
        victim = running.pop()
        free_blocks.extend(victim.block_table)
        victim.block_table.clear()
        victim.num_computed_tokens = 0
        waiting.insert(0, victim)
        if victim is request:
            break
    return len(free_blocks) >= num_blocks

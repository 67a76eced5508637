"""Finds out first how many have to go, then moves them in one piece."""


def preempt(index, num_blocks, running, waiting, free_blocks):
    room, first = len(free_blocks), len(running)
    while room < num_blocks and first > index:
        first -= 1
        room += len(running[first].block_table)
    victims = running[first:]
    del running[first:]
    waiting[:0] = victims
    for victim in victims:
        free_blocks[:0] = victim.block_table
        victim.block_table = []
        victim.num_computed_tokens = 0
    return first > index

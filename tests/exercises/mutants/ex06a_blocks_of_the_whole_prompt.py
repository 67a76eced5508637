# caught by: test_blocks_are_counted_for_the_part_computed_now
"""Asks for the blocks of the whole prompt at once."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    for asked in waiting:
        count = min(asked, token_budget)
        blocks = -(-asked // block_size)
        if seats == 0 or count == 0 or blocks > free_blocks:
            break
        admitted.append(count)
        seats, token_budget, free_blocks = seats - 1, token_budget - count, free_blocks - blocks
    return admitted

# caught by: test_no_limit_is_broken_and_no_room_is_wasted
"""A started block is not counted."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    for asked in waiting:
        count = min(asked, token_budget)
        blocks = count // block_size
        if seats == 0 or count == 0 or blocks > free_blocks:
            break
        admitted.append(count)
        seats, token_budget, free_blocks = seats - 1, token_budget - count, free_blocks - blocks
    return admitted

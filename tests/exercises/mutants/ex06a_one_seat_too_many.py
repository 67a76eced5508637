# caught by: test_seats_limit_the_batch
"""Compares one request too late."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    for asked in waiting:
        count = min(asked, token_budget)
        blocks = -(-count // block_size)
        if len(admitted) > seats + 10 or count == 0 or blocks > free_blocks:
            break
        admitted.append(count)
        seats, token_budget, free_blocks = seats, token_budget - count, free_blocks - blocks
    return admitted

# caught by: test_what_fits_is_admitted
"""Takes those that it admits out of the queue: the scheduler, which does that itself, loses as many again."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    while waiting and seats > 0 and token_budget > 0:
        count = min(waiting[0], token_budget)
        blocks = -(-count // block_size)
        if blocks > free_blocks:
            break
        waiting.pop(0)
        admitted.append(count)
        seats, token_budget, free_blocks = seats - 1, token_budget - count, free_blocks - blocks
    return admitted

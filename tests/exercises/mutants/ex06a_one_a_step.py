# caught by: test_what_fits_is_admitted
"""Admits one request per step."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    for asked in waiting:
        count = min(asked, token_budget)
        blocks = -(-count // block_size)
        if seats == 0 or count == 0 or blocks > free_blocks:
            break
        admitted.append(count)
        seats, token_budget, free_blocks = seats - 1, token_budget - count, free_blocks - blocks
    return admitted[:1]

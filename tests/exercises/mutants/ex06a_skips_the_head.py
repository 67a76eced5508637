# caught by: test_the_head_of_the_line_is_never_skipped
"""Passes over a request that does not fit: the classic cause of starvation."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    for asked in waiting:
        count = min(asked, token_budget)
        blocks = -(-count // block_size)
        if seats == 0 or count == 0 or blocks > free_blocks:
            continue
        admitted.append(count)
        seats, token_budget, free_blocks = seats - 1, token_budget - count, free_blocks - blocks
    return admitted

# caught by: test_what_fits_is_admitted
"""Takes the requests out of the list that it was given."""

def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    while waiting and seats and token_budget:
        tokens = min(waiting[0], token_budget)
        blocks = -(-tokens // block_size)
        if blocks > free_blocks:
            break
        waiting.pop(0)
        admitted.append(tokens)
        seats, token_budget, free_blocks = seats - 1, token_budget - tokens, free_blocks - blocks
    return admitted

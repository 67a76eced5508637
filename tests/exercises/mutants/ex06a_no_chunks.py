# caught by: test_a_long_prompt_gets_what_is_left_of_the_budget
"""Admits whole prompts only: one that is longer than the budget waits forever."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    for asked in waiting:
        count = asked
        blocks = -(-count // block_size)
        if seats == 0 or count > token_budget or blocks > free_blocks:
            break
        admitted.append(count)
        seats, token_budget, free_blocks = seats - 1, token_budget - count, free_blocks - blocks
    return admitted

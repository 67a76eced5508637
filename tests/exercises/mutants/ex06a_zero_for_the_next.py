# caught by: test_a_long_prompt_gets_what_is_left_of_the_budget
"""A request joins with 0 tokens when the budget is used up."""


def admit(waiting, seats, token_budget, free_blocks, block_size):
    admitted = []
    for asked in waiting[:seats]:
        tokens = min(asked, token_budget)
        blocks = -(-tokens // block_size)
        if blocks > free_blocks:
            break
        admitted.append(tokens)
        token_budget, free_blocks = token_budget - tokens, free_blocks - blocks
    return admitted

# caught by: test_a_new_token_goes_behind_the_last
"""All slots from the beginning, each time."""


def slot_mapping(block_table, start, end, block_size):
    return [block_table[p // block_size] * block_size + p % block_size for p in range(end)]

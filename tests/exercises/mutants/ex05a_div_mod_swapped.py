# caught by: test_every_position_has_a_slot_of_its_own
"""Block and offset swapped."""


def slot_mapping(block_table, start, end, block_size):
    return [block_table[p // block_size] + p % block_size * block_size for p in range(start, end)]

# caught by: test_the_example_request_has_these_slots
"""Cuts off the blocks that it does not need, in the table that the sequence goes on with."""


def slot_mapping(block_table, start, end, block_size):
    del block_table[-(-end // block_size) :]
    return [block_table[p // block_size] * block_size + p % block_size for p in range(start, end)]

# caught by: test_the_example_request_has_these_slots
"""Goes on to the end of the table."""


def slot_mapping(block_table, start, end, block_size):
    slots = [block * block_size + offset for block in block_table for offset in range(block_size)]
    return slots[start:]

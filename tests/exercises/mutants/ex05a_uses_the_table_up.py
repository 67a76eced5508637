# caught by: test_every_position_has_a_slot_of_its_own
"""Takes the blocks out of the table."""

def slot_mapping(block_table, start, end, block_size):
    slots = []
    while block_table:
        block = block_table.pop(0)
        slots += range(block * block_size, (block + 1) * block_size)
    return slots[start:end]

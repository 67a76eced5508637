"""Writes down the slots of the whole table, then cuts."""


def slot_mapping(block_table, start, end, block_size):
    slots = [block * block_size + offset for block in block_table for offset in range(block_size)]
    return slots[start:end]

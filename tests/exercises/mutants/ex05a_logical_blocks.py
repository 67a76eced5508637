# caught by: test_the_example_request_has_these_slots
"""Forgets the table: logical blocks are taken for physical ones."""


def slot_mapping(block_table, start, end, block_size):
    return list(range(start, end))

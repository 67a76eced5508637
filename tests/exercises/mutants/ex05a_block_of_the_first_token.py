# caught by: test_the_engine_writes_where_it_says
"""Looks the block up once and runs on into the next one."""


def slot_mapping(block_table, start, end, block_size):
    first = block_table[start // block_size] * block_size + start % block_size
    return list(range(first, first + end - start))

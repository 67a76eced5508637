"""No hash at all: the name of a block is the whole beginning. Long names, and no two can ever be confused."""


def block_names(token_ids, block_size):
    return [tuple(token_ids[:end]) for end in range(block_size, len(token_ids) + 1, block_size)]

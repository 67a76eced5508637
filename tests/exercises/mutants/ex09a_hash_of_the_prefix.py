# caught by: test_names_cannot_be_made_to_collide
"""Python's `hash` of the whole beginning: 64 bits, and no secret in them."""


def block_names(token_ids, block_size):
    ends = range(block_size, len(token_ids) + 1, block_size)
    return [hash(tuple(token_ids[:end])) for end in ends]

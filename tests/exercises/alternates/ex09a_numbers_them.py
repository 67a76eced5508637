"""Numbers the beginnings in the order in which they are first seen: a tree, with no hash of its own."""

NUMBERS = {}


def block_names(token_ids, block_size):
    names, parent = [], (block_size,)
    for end in range(block_size, len(token_ids) + 1, block_size):
        key = parent, *token_ids[end - block_size : end]
        parent = NUMBERS.setdefault(key, len(NUMBERS))
        names.append(parent)
    return names

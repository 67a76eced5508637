# caught by: test_names_cannot_be_made_to_collide
"""Python's `hash` of parent and block, as in vLLM before 0.10.2."""


def block_names(token_ids, block_size):
    names, parent = [], 0
    for end in range(block_size, len(token_ids) + 1, block_size):
        parent = hash((parent, tuple(token_ids[end - block_size : end])))
        names.append(parent)
    return names

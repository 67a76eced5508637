"""A chain of pairs: (the name of the block before, the tokens of this one)."""


def block_names(token_ids, block_size):
    names, parent, block = [], None, []
    for token_id in token_ids:
        block.append(token_id)
        if len(block) == block_size:
            parent = (parent, tuple(block))
            names.append(parent)
            block = []
    return names

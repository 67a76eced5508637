"""Walks through the positions, and looks at each whether it is the last of a block."""


def after_check(num_known, drafts, chosen, block_size):
    new, full, position = [], [], num_known - 1  # the position that has just been computed
    for draft, choice in zip([*drafts, None], chosen, strict=True):
        if position % block_size == block_size - 1:
            full.append(position // block_size)
        position += 1
        new.append(choice)
        if choice != draft:
            break
    return new, position, full

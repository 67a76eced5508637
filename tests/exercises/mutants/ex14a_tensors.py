# caught by: test_the_first_difference_counts
"""Returns tensors of one element where numbers were asked for."""

import torch


def first_flip(ours, theirs):
    different = torch.nonzero(ours.argmax(dim=1) != theirs.argmax(dim=1)).flatten()
    if len(different) == 0:
        return None
    row = different[0]
    return row, theirs[row].max() - theirs[row, ours[row].argmax()]

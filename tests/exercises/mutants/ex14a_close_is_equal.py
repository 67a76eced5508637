# caught by: test_a_tie_is_a_difference_too
"""Looks at the numbers before it looks at the choices: a tie that rounding decides is overlooked."""

import torch


def first_flip(ours, theirs):
    if torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5):
        return None
    different = torch.nonzero(ours.argmax(dim=1) != theirs.argmax(dim=1)).flatten().tolist()
    if not different:
        return None
    row = different[0]
    mine, other = ours[row].argmax(), theirs[row].argmax()
    return row, (theirs[row, other] - theirs[row, mine]).item()

# caught by: test_numbers_may_differ_as_long_as_the_choice_is_the_same
"""Compares the numbers in place of the choices."""


def first_flip(ours, theirs):
    rows = (ours != theirs).any(dim=1).nonzero().flatten().tolist()
    if not rows:
        return None
    row = rows[0]
    return row, (theirs[row, theirs[row].argmax()] - theirs[row, ours[row].argmax()]).item()

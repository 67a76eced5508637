# caught by: test_the_first_difference_counts
"""Takes the last row in which the choices differ."""


def first_flip(ours, theirs):
    a, b = ours.argmax(dim=1), theirs.argmax(dim=1)
    rows = (a != b).nonzero().flatten().tolist()
    if not rows:
        return None
    row = rows[-1]
    return row, (theirs[row, b[row]] - theirs[row, a[row]]).item()

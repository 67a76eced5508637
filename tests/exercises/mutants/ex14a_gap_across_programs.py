# caught by: test_the_gap_is_between_two_tokens_of_theirs
"""Their best logit minus our best logit."""


def first_flip(ours, theirs):
    rows = (ours.argmax(dim=1) != theirs.argmax(dim=1)).nonzero().flatten().tolist()
    if not rows:
        return None
    return rows[0], abs(theirs[rows[0]].max() - ours[rows[0]].max()).item()

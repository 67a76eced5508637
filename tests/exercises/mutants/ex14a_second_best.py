# caught by: test_the_gap_is_between_two_tokens_of_theirs
"""The distance of their two best tokens, one of which may not be ours."""


def first_flip(ours, theirs):
    rows = (ours.argmax(dim=1) != theirs.argmax(dim=1)).nonzero().flatten().tolist()
    if not rows:
        return None
    best = theirs[rows[0]].topk(2).values
    return rows[0], (best[0] - best[1]).item()

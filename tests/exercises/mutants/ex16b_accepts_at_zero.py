# caught by: test_what_the_model_excludes_never_comes
"""`<=`: a random number of 0 accepts what has probability 0."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] <= p[draft]:
        return draft
    left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    total = 0.0
    for token, mass in enumerate(left):
        total += mass
        if total > u_redraw * sum(left):
            return token
    return len(p) - 1

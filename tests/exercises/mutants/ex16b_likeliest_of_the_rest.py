# caught by: test_a_guesser_that_is_certain
"""After a rejection takes the likeliest of what is left, without drawing."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] < p[draft]:
        return draft
    left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    return left.index(max(left))

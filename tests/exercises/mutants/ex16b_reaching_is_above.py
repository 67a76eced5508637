# caught by: test_the_example_by_hand
"""Takes a sum that is equal to u_redraw for one above it."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] < p[draft]:
        return draft
    left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    total, reached, last = sum(left), 0.0, draft
    for token, mass in enumerate(left):
        if mass > 0:
            last = token
            reached += mass / total
            if reached >= u_redraw:
                return token
    return last

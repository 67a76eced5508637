# caught by: test_what_the_model_excludes_never_comes
"""If rounding leaves the sum below u_redraw, takes the last token, whatever is left over of it."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] < p[draft]:
        return draft
    left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    whole, total = sum(left), 0.0
    for token, mass in enumerate(left):
        total += mass / whole
        if total > u_redraw:
            return token
    return len(p) - 1

# caught by: test_the_example_by_hand
"""q / p for p / q."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * p[draft] < q[draft]:
        return draft
    left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    total = 0.0
    for token, mass in enumerate(left):
        total += mass
        if total > u_redraw * sum(left):
            return token
    return len(p) - 1

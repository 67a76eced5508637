"""Divides first, and draws by a list of running sums."""

from itertools import accumulate


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept < min(1.0, p[draft] / q[draft]):
        return draft
    left = [a - b if a > b else 0.0 for a, b in zip(p, q, strict=True)]
    shares = [mass / sum(left) for mass in left]
    above = [token for token, total in enumerate(accumulate(shares)) if total > u_redraw]
    return above[0] if above else max(token for token, mass in enumerate(left) if mass > 0)

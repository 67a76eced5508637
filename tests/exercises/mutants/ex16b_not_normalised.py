# caught by: test_tokens_are_distributed_as_the_model_wants
"""Forgets to divide by the sum: the last token gets what is missing to 1."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] < p[draft]:
        return draft
    total = 0.0
    for token, (a, b) in enumerate(zip(p, q, strict=True)):
        total += max(0.0, a - b)
        if total > u_redraw:
            return token
    return len(p) - 1

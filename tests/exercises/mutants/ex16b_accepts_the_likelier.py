# caught by: test_a_guesser_like_the_model_is_always_right
"""Accepts only what the model finds likelier than the guesser, strictly."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if p[draft] > q[draft]:
        return draft
    total = 0.0
    for token, mass in enumerate(p):
        total += mass
        if total > u_redraw:
            return token
    return len(p) - 1

# caught by: test_tokens_are_distributed_as_the_model_wants
"""After a rejection draws from p itself, which gives what q prefers a second chance."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] < p[draft]:
        return draft
    total = 0.0
    for token, mass in enumerate(p):
        total += mass
        if total > u_redraw:
            return token
    return len(p) - 1

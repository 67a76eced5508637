# caught by: test_the_example_by_hand
"""Takes q away from p in the caller's list: the next draft is judged by what is left over."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] < p[draft]:
        return draft
    for token, mass in enumerate(q):
        p[token] = max(0.0, p[token] - mass)
    goal, total = u_redraw * sum(p), 0.0
    for token, mass in enumerate(p):
        total += mass
        if total > goal:
            return token
    return max(range(len(p)), key=p.__getitem__)

# caught by: test_what_the_model_excludes_never_comes
"""`>=`: at u_redraw = 0 the first token is drawn, though nothing of it is left over."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    if u_accept * q[draft] < p[draft]:
        return draft
    left = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    goal, total = u_redraw * sum(left), 0.0
    for token, mass in enumerate(left):
        total += mass
        if total >= goal:
            return token
    return max(range(len(p)), key=left.__getitem__)

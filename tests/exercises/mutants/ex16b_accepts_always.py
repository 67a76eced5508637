# caught by: test_tokens_are_distributed_as_the_model_wants
"""The fastest rule: every draft is right."""


def accept_or_redraw(p, q, draft, u_accept, u_redraw):
    return draft

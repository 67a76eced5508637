# caught by: test_no_request_is_in_the_step_with_zero_tokens
"""Goes on when the budget is used up, with rows of no tokens."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running] + list(waiting)
    rows = []
    for count in lacking:
        chunk = min(count, token_budget)
        rows.append((chunk, chunk == count))
        token_budget -= chunk
    return rows

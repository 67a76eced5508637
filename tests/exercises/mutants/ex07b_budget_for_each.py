# caught by: test_no_step_exceeds_the_budget
"""Every request may use the whole budget."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running] + list(waiting)
    rows = []
    for count in lacking:
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, chunk == count))
    return rows

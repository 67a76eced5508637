# caught by: test_no_step_exceeds_the_budget
"""A prompt that does not fit as a whole waits, for ever if it is longer than the budget."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running] + list(waiting)
    rows = []
    for count in lacking:
        if count > token_budget:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, chunk == count))
        token_budget -= chunk
    return rows

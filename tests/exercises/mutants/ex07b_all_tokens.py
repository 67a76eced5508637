# caught by: test_each_request_catches_up
"""Counts the tokens that are known, not those that are missing."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens for tokens, _ in running] + list(waiting)
    rows = []
    for count in lacking:
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, chunk == count))
        token_budget -= chunk
    return rows

# caught by: test_each_request_catches_up
"""Takes the requests out of the lists that it was given."""

def next_chunks(running, waiting, token_budget):
    rows = []
    running.extend((tokens, 0) for tokens in waiting)
    for tokens, computed in running:
        if token_budget == 0:
            break
        count = min(tokens - computed, token_budget)
        rows.append((count, computed + count == tokens))
        token_budget -= count
    return rows

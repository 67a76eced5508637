# caught by: test_each_request_catches_up
"""Takes requests out of the queues that it was only asked about."""


def next_chunks(running, waiting, token_budget):
    rows = []
    while (running or waiting) and token_budget > 0:
        tokens, computed = running.pop(0) if running else (waiting.pop(0), 0)
        chunk = min(tokens - computed, token_budget)
        rows.append((chunk, chunk == tokens - computed))
        token_budget -= chunk
    return rows

# caught by: test_the_budget_is_dealt_out_in_order
"""Keeps the last token of the budget when only waiting requests are left."""


def next_chunks(running, waiting, token_budget):
    rows = []
    for index, (tokens, computed) in enumerate([*running, *((tokens, 0) for tokens in waiting)]):
        room = token_budget - (index >= len(running) and tokens > token_budget)
        if room <= 0:
            break
        chunk = min(tokens - computed, room)
        rows.append((chunk, chunk == tokens - computed))
        token_budget -= chunk
    return rows

# caught by: test_a_long_prompt_delays_no_generating_request
"""The request that lacks most comes first, so one token waits for ninety."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running] + list(waiting)
    lacking.sort(reverse=True)
    rows = []
    for count in lacking:
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, chunk == count))
        token_budget -= chunk
    return rows

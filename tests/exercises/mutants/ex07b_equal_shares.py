# caught by: test_a_long_prompt_delays_no_generating_request
"""The budget is divided into equal shares, and what a request does not need is lost."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running] + list(waiting)
    share = max(1, token_budget // max(1, len(lacking)))
    rows = []
    for count in lacking:
        chunk = min(count, share, token_budget)
        if chunk == 0:
            break
        rows.append((chunk, chunk == count))
        token_budget -= chunk
    return rows

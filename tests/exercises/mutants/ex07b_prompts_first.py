# caught by: test_a_long_prompt_delays_no_generating_request
"""Waiting requests come first: a prompt of 90 tokens stops all that generate."""


def next_chunks(running, waiting, token_budget):
    lacking = list(waiting) + [tokens - computed for tokens, computed in running]
    rows = []
    for count in lacking:
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, chunk == count))
        token_budget -= chunk
    return rows

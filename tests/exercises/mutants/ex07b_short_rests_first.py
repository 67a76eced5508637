# caught by: test_the_budget_is_dealt_out_in_order
"""Running requests that lack one token come before those that lack more: another order than theirs."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running]
    rows = []
    for count in sorted(lacking, key=lambda count: count > 1) + list(waiting):
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, chunk == count))
        token_budget -= chunk
    return rows

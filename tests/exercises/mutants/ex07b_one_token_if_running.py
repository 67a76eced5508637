# caught by: test_each_request_catches_up
"""A running request gets one token, as if no prompt were ever half done."""


def next_chunks(running, waiting, token_budget):
    lacking = [(1, tokens - computed == 1) for tokens, computed in running]
    lacking += [(tokens, True) for tokens in waiting]
    rows = []
    for count, samples in lacking:
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, samples and chunk == count))
        token_budget -= chunk
    return rows

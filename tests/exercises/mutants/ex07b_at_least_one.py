# caught by: test_no_step_exceeds_the_budget
"""Every running request gets at least one token, even beyond the budget."""


def next_chunks(running, waiting, token_budget):
    running = [tokens - computed for tokens, computed in running]
    rows, budget = [], token_budget
    for count in [*running, *waiting]:
        chunk = max(1, min(count, budget))
        rows.append((chunk, chunk == count))
        budget -= chunk
    return rows

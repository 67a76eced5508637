# caught by: test_no_step_exceeds_the_budget
"""Nobody who runs may go without, budget or not."""


def next_chunks(running, waiting, token_budget):
    running = [tokens - computed for tokens, computed in running]
    rows, budget = [], token_budget
    for count in [*running, *waiting]:
        chunk = max(1, min(count, budget))
        rows.append((chunk, chunk == count))
        budget -= chunk
    return rows

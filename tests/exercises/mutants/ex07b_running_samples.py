# caught by: test_a_part_of_a_prompt_samples_nothing
"""Thinks that only a new prompt can be half done: every running request samples."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running] + list(waiting)
    rows = []
    for index, count in enumerate(lacking):
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, index < len(running) or chunk == count))
        token_budget -= chunk
    return rows

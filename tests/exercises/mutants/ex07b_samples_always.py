# caught by: test_a_part_of_a_prompt_samples_nothing
"""Every row samples, half-read prompts too."""


def next_chunks(running, waiting, token_budget):
    lacking = [tokens - computed for tokens, computed in running] + list(waiting)
    rows = []
    for count in lacking:
        if token_budget == 0:
            break
        chunk = min(count, token_budget)
        rows.append((chunk, True))
        token_budget -= chunk
    return rows

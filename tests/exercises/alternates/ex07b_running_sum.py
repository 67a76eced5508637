"""From where to where each request would lie in a step without end; then the step is cut off."""


def next_chunks(running, waiting, token_budget):
    requests = list(running) + [(tokens, 0) for tokens in waiting]
    rows, end = [], 0
    for tokens, computed in requests:
        start, end = end, end + tokens - computed
        if start < token_budget:
            rows.append((min(end, token_budget) - start, end <= token_budget))
    return rows

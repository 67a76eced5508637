"""No tensor operations: a loop over the tokens that carry weight, in Python's float64."""

import math


def sample(logits, temperature, u):
    row = logits.tolist()
    best = max(row)
    if temperature == 0:
        return row.index(best)
    weights = [math.exp((logit - best) / temperature) for logit in row]
    target, mass, token = u * sum(weights), 0.0, 0
    for i, weight in enumerate(weights):
        if weight == 0.0:
            continue
        token, mass = i, mass + weight
        if mass >= target:
            break
    return token

"""Sorts, as most engines do; of equal tokens the sort decides which stay."""

import torch


def top_p(probs, p):
    if p == 1:
        return probs / probs.sum()
    values, order = probs.sort(descending=True)
    before = values.cumsum(dim=0) - values
    # By subtraction the sum before the first token could come out below 0, never above: it is kept.
    values = torch.where(before < p, values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, values / values.sum())

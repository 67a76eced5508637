# caught by: test_one_token_may_hold_all_the_mass
"""Keeps the sums up to p and the next one, but not the first if it alone is above p: 0 / 0."""

import torch


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    kept = values.cumsum(dim=0) <= p
    if kept.any():
        kept[: int(kept.sum()) + 1] = True
    values = torch.where(kept, values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, values / values.sum())

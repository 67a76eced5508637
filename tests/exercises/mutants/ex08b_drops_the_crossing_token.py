# caught by: test_the_token_that_crosses_p_is_kept
"""Keeps the tokens whose own sum is within p: less than p is left."""

import torch


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    kept = values.cumsum(dim=0) <= p
    kept[0] = True
    values = torch.where(kept, values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, values / values.sum())

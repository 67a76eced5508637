# caught by: test_p_of_one_keeps_every_token
"""p = 1 is cut like any other p: once the float32 sum is 1, the rest is dropped."""

import torch


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    sums = values.cumsum(dim=0)
    kept = torch.cat([torch.tensor([True]), sums[:-1] < p])
    values = torch.where(kept, values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, values / values.sum())

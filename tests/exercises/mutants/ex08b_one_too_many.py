# caught by: test_the_fewest_tokens_with_mass_p_are_kept
"""Shifts the cut by one token too much: one after the crossing token stays as well."""

import torch


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    last = int((values.cumsum(dim=0) < p).sum()) + 1
    values = torch.where(torch.arange(len(probs)) <= last, values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, values / values.sum())

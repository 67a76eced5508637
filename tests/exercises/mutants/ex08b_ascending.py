# caught by: test_the_fewest_tokens_with_mass_p_are_kept
"""Sorts ascending: keeps the unlikely tokens."""

import torch


def top_p(probs, p):
    values, order = probs.sort()
    before = values.cumsum(dim=0) - values
    values = torch.where((before < p) | (p == 1), values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, values / values.sum())

# caught by: test_the_engine_draws_what_your_cut_leaves
"""Keeps the right tokens, and makes all of them equally likely."""

import torch


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    kept = (values.cumsum(dim=0) - values < p) | (p == 1)
    return torch.zeros_like(probs).scatter(0, order, kept / kept.sum())

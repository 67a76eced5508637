# caught by: test_the_engine_draws_what_your_cut_leaves
"""Keeps what is at least 1 - p of the likeliest: that is min_p, another rule."""

import torch


def top_p(probs, p):
    kept = torch.where(probs >= (1 - p) * probs.max(), probs, 0.0)
    return kept / kept.sum()

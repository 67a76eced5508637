"""Measures everything from the best logit: sigma does not change if all logits are shifted."""

import torch


def top_n_sigma(logits, n):
    below = logits.max() - logits  # (V,), inf for forbidden tokens
    finite = below[below < float("inf")]
    sigma = ((finite - finite.mean()) ** 2).mean().sqrt()
    return torch.where(below <= n * sigma, logits, float("-inf"))

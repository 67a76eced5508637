# caught by: test_the_fewest_tokens_with_mass_p_are_kept
"""Returns the sorted probabilities: they belong to other tokens now."""

import torch


def top_p(probs, p):
    values = probs.sort(descending=True).values
    before = values.cumsum(dim=0) - values
    values = torch.where((before < p) | (p == 1), values, 0.0)
    return values / values.sum()

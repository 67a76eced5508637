# caught by: test_what_is_left_adds_up_to_one
"""What is left is not divided by its sum."""

import torch


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    before = values.cumsum(dim=0) - values
    kept = torch.where((before < p) | (p == 1), values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, kept)

# caught by: test_temperature_zero_is_the_largest_logit
"""Greedy takes the last of several equal tokens."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return len(logits) - 1 - int(logits.flip(0).argmax())
    sums = (logits / temperature).softmax(dim=0).cumsum(dim=0)
    return min(int(torch.searchsorted(sums, u * sums[-1])), len(logits) - 1)

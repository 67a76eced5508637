# caught by: test_temperature_zero_is_the_largest_logit
"""Puts 0.01 in place of 0: a token that is 0.1 behind, or equal, is drawn now and then."""

import torch


def sample(logits, temperature, u):
    sums = (logits / max(temperature, 0.01)).softmax(dim=0).cumsum(dim=0)
    return min(int(torch.searchsorted(sums, u * sums[-1])), len(logits) - 1)

# caught by: test_temperature_divides_the_logits
"""Divides after the softmax; the sum takes it out again, and the temperature has no effect."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    sums = (logits.softmax(dim=0) / temperature).cumsum(dim=0)
    return min(int(torch.searchsorted(sums, u * sums[-1])), len(logits) - 1)

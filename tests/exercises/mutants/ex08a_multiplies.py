# caught by: test_temperature_divides_the_logits
"""Multiplies by the temperature: high temperatures make the text more certain."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    sums = (logits * temperature).softmax(dim=0).cumsum(dim=0)
    return min(int(torch.searchsorted(sums, u * sums[-1])), len(logits) - 1)

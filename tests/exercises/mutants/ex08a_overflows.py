# caught by: test_large_logits_do_not_overflow
"""Exponentials of the logits as they are: 1000 is infinite, -1000 is 0, and all sums are NaN."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    sums = (logits / temperature).exp().cumsum(dim=0)
    return min(int(torch.searchsorted(sums, u * sums[-1])), len(logits) - 1)

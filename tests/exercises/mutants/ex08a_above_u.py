# caught by: test_the_first_sum_that_reaches_u_decides
"""Looks for a sum above u; one that reaches it exactly is passed over."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    sums = (logits / temperature).softmax(dim=0).cumsum(dim=0)
    return min(int(torch.searchsorted(sums, u * sums[-1], right=True)), len(logits) - 1)

# caught by: test_the_engine_draws_the_same_tokens_with_it
"""Adds up the likeliest first: the same distribution, but another token for the same u."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    probs, order = (logits / temperature).softmax(dim=0).sort(descending=True, stable=True)
    sums = probs.cumsum(dim=0)
    return int(order[min(int(torch.searchsorted(sums, u * sums[-1])), len(logits) - 1)])

# caught by: test_a_forbidden_token_is_never_chosen
"""Takes the sum of all probabilities for 1: at u = 1 rounding lets it end at the last token, a forbidden one."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    sums = (logits / temperature).softmax(dim=0).cumsum(dim=0)
    return min(int(torch.searchsorted(sums, torch.tensor(u))), len(logits) - 1)

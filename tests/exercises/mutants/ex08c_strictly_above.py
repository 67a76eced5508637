# caught by: test_n_of_zero_is_greedy
"""`>` for `>=`: with n = 0 nothing is left."""

import torch


def top_n_sigma(logits, n):
    sigma = logits[logits.isfinite()].std(unbiased=False)
    return torch.where(logits > logits.max() - n * sigma, logits, float("-inf"))

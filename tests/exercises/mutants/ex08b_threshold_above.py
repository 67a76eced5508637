# caught by: test_equal_tokens_at_the_cut
"""Keeps what is likelier than the token after the cut: tokens equal to that one are lost, crossing or not."""

import torch


def top_p(probs, p):
    values = probs.sort(descending=True).values
    num_kept = int(((values.cumsum(dim=0) - values < p) | (p == 1)).sum())
    next_one = values[num_kept] if num_kept < len(values) else -1.0
    kept = torch.where((probs > next_one) | (probs == values[0]), probs, 0.0)
    return kept / kept.sum()

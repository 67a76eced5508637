# caught by: test_reaching_p_exactly_is_enough
"""`<=` for `<`: where the sum is exactly p, one more token is kept."""

import torch


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    before = values.cumsum(dim=0) - values
    values = torch.where(before <= p, values, 0.0)
    return torch.zeros_like(probs).scatter(0, order, values / values.sum())

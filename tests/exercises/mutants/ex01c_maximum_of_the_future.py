# caught by: test_scores_of_any_size_give_the_right_weights
"""The maximum is taken before the mask: all that may be seen is 0 beside it."""

import torch


def grouped_attention(query, key, value):
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,nhd->htn", query, key) * query.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:]).triu(1).bool()
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True)).masked_fill(future, 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.einsum("htn,nhd->thd", weights, value)

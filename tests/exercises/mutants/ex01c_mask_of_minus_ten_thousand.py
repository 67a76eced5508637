# caught by: test_scores_of_any_size_give_the_right_weights
"""The future scores -10,000, as in GPT-2's code: more than a past of -20,000."""

import torch


def grouped_attention(query, key, value):
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,nhd->htn", query, key) * query.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:]).triu(1).bool()
    weights = scores.masked_fill(future, -10_000.0).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value)

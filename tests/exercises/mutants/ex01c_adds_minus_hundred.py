# caught by: test_scores_of_any_size_give_the_right_weights
"""The future loses 100 points, which a large score has to spare."""

import torch


def grouped_attention(query, key, value):
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,nhd->htn", query, key) * query.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:]).triu(1).bool()
    weights = (scores - 100.0 * future).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value)

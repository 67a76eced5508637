# caught by: test_scores_of_any_size_give_the_right_weights
"""One maximum for all tokens of a head: early tokens, whose scores lie far below it, have weights of 0 / 0."""

import torch


def grouped_attention(query, key, value):
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,nhd->htn", query, key) * query.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf"))
    weights = torch.exp(scores - scores.amax(dim=(1, 2), keepdim=True))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.einsum("htn,nhd->thd", weights, value)

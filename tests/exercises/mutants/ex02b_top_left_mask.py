# caught by: test_any_split_gives_the_same
"""The mask of a prompt, used for its second part too: aligned at the top left."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached:end] = key
    value_cache[num_cached:end] = value
    scores = torch.einsum("thd,nhd->htn", query, key_cache[:end]) * query.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:]).triu(1).bool()
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value_cache[:end])

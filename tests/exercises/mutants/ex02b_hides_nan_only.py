# caught by: test_neither_garbage_nor_large_scores_disturb
"""Reads the garbage behind the end and takes out the NaN in it: infinities stay."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached:end] = key
    value_cache[num_cached:end] = value
    keys, values = (torch.where(each.isnan(), 0.0, each) for each in (key_cache, value_cache))
    scores = torch.einsum("thd,nhd->htn", query, keys) * query.shape[-1] ** -0.5
    future = torch.ones(query.shape[0], len(keys)).triu(num_cached + 1).bool()
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, values)

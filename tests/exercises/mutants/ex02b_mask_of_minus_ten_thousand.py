# caught by: test_neither_garbage_nor_large_scores_disturb
"""The future scores -10,000, as in GPT-2's code: more than a past of -20,000."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached:end] = key
    value_cache[num_cached:end] = value
    scores = torch.einsum("thd,nhd->htn", query, key_cache[:end]) * query.shape[-1] ** -0.5
    future = torch.ones(query.shape[0], end).triu(num_cached + 1).bool()
    weights = scores.masked_fill(future, -10_000.0).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value_cache[:end])

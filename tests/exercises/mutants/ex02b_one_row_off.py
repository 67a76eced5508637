# caught by: test_new_keys_and_values_go_behind_those_cached
"""Writes one row too far, where the next token expects its own."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached + 1 : end + 1] = key
    value_cache[num_cached + 1 : end + 1] = value
    scores = torch.einsum("thd,nhd->htn", query, key_cache[:end]) * query.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:]).triu(num_cached + 1).bool()
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value_cache[:end])

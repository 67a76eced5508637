# caught by: test_a_generated_token_sees_the_past_and_itself
"""Attends to the new tokens and forgets the cache."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached:end] = key
    value_cache[num_cached:end] = value
    scores = torch.einsum("thd,nhd->htn", query, key) * query.shape[-1] ** -0.5
    future = torch.ones(scores.shape[1:]).triu(1).bool()
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value)

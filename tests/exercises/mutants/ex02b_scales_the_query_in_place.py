# caught by: test_no_token_of_a_prompt_sees_its_future
"""`*=`: multiplies the query that the caller still has."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached:end] = key
    value_cache[num_cached:end] = value
    query *= query.shape[-1] ** -0.5
    scores = torch.einsum("thd,nhd->htn", query, key_cache[:end])
    future = torch.ones(query.shape[0], end).triu(num_cached + 1).bool()
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value_cache[:end])

# caught by: test_no_token_of_a_prompt_sees_its_future
"""No mask: right for one token at a time."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached:end] = key
    value_cache[num_cached:end] = value
    scores = torch.einsum("thd,nhd->htn", query, key_cache[:end]) * query.shape[-1] ** -0.5
    weights = scores.softmax(dim=-1)
    return torch.einsum("htn,nhd->thd", weights, value_cache[:end])

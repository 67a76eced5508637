# caught by: test_any_split_gives_the_same
"""Several tokens are a prompt, and a prompt has no past: its second part forgets the first."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + query.shape[0]
    key_cache[num_cached:end] = key
    value_cache[num_cached:end] = value
    start = num_cached if query.shape[0] > 1 else 0
    scores = torch.einsum("thd,nhd->htn", query, key_cache[start:end]) * query.shape[-1] ** -0.5
    if query.shape[0] > 1:
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf"))
    return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1), value_cache[start:end])

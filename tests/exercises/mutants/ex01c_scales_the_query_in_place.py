# caught by: test_with_as_many_kv_heads_it_is_plain_attention
"""`/=`: divides the query that the caller still has."""

import torch


def grouped_attention(query, key, value):
    num_tokens, num_heads, dim = query.shape
    group = num_heads // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    query /= dim**0.5
    scores = torch.einsum("thd,nhd->htn", query, key)
    scores = scores.masked_fill(torch.ones(num_tokens, num_tokens).triu(1).bool(), float("-inf"))
    return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1), value)

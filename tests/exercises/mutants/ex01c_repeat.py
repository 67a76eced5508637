# caught by: test_neighbouring_query_heads_share_a_kv_head
"""Repeats the KV heads as a whole: 0, 1, 0, 1."""

import torch


def grouped_attention(query, key, value):
    num_tokens, num_heads, dim = query.shape
    group = num_heads // key.shape[1]
    key, value = key.repeat(1, group, 1), value.repeat(1, group, 1)
    scores = torch.einsum("thd,nhd->htn", query, key) / dim**0.5
    scores = scores.masked_fill(torch.ones(num_tokens, num_tokens).triu(1).bool(), float("-inf"))
    return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1), value)

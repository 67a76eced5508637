# caught by: test_the_model_writes_the_same_text_without_a_cache
"""All query heads use the first KV head."""

import torch


def grouped_attention(query, key, value):
    num_tokens, _, dim = query.shape
    key, value = key[:, :1].expand_as(query), value[:, :1].expand_as(query)
    scores = torch.einsum("thd,nhd->htn", query, key) / dim**0.5
    scores = scores.masked_fill(torch.ones(num_tokens, num_tokens).triu(1).bool(), float("-inf"))
    return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1), value)

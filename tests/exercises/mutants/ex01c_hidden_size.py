# caught by: test_scores_are_divided_by_the_root_of_the_head_size
"""Divides by the root of the hidden size."""

import torch


def grouped_attention(query, key, value):
    num_tokens, num_heads, dim = query.shape
    group = num_heads // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,nhd->htn", query, key) / (num_heads * dim) ** 0.5
    scores = scores.masked_fill(torch.ones(num_tokens, num_tokens).triu(1).bool(), float("-inf"))
    return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1), value)

# caught by: test_with_as_many_kv_heads_it_is_plain_attention
"""The mask hides the token itself; the first token then sees nothing."""

import torch


def grouped_attention(query, key, value):
    num_tokens, num_heads, dim = query.shape
    group = num_heads // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,nhd->htn", query, key) / dim**0.5
    scores = scores.masked_fill(
        torch.ones(num_tokens, num_tokens).triu(0).fill_diagonal_(1).bool(), float("-inf")
    )
    return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1).nan_to_num(0.0), value)

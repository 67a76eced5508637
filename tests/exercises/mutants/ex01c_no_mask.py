# caught by: test_no_token_sees_its_future
"""No mask."""

import torch


def grouped_attention(query, key, value):
    _, num_heads, dim = query.shape
    group = num_heads // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = torch.einsum("thd,nhd->htn", query, key) / dim**0.5
    return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1), value)

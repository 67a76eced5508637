"""Folds the group into its own dimension: K and V are never repeated."""

import torch


def grouped_attention(query, key, value):
    num_tokens, num_heads, dim = query.shape
    query = query.reshape(num_tokens, key.shape[1], -1, dim)  # (T, Hkv, G, D)
    scores = torch.einsum("tkgd,nkd->kgtn", query, key) / dim**0.5
    visible = torch.arange(num_tokens)[:, None] >= torch.arange(num_tokens)
    weights = torch.where(visible, scores, -torch.inf).softmax(dim=-1)
    return torch.einsum("kgtn,nkd->tkgd", weights, value).reshape(num_tokens, num_heads, dim)

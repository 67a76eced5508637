# caught by: test_every_token_is_attended_to_once
"""Rounds down: the tiles that are left over belong to no program."""
# ruff: noqa: E741

import torch


def split_kv(seq_len, num_splits, tile, attend_part):
    num_tiles = (seq_len + tile - 1) // tile
    share = max(1, num_tiles // num_splits) * tile
    parts = []
    for i in range(num_splits):
        low, high = i * share, min((i + 1) * share, seq_len)
        parts.append(attend_part(low, high))
    m, l, acc = (torch.stack(each) for each in zip(*parts, strict=True))
    weight = torch.exp(m - m.amax(0))
    acc = acc.where((l > 0)[..., None], 0.0)
    return (weight[..., None] * acc).sum(0) / (weight * l).sum(0)[:, None]

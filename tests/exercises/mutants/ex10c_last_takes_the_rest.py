# caught by: test_the_example_is_divided_fairly
"""Rounds down, and the last program gets whatever is left."""
# ruff: noqa: E741

import torch


def split_kv(seq_len, num_splits, tile, attend_part):
    num_tiles = (seq_len + tile - 1) // tile
    share = num_tiles // num_splits * tile
    parts = []
    for i in range(num_splits):
        low, high = i * share, (i + 1) * share if i < num_splits - 1 else seq_len
        parts.append(attend_part(low, high))
    m, l, acc = (torch.stack(each) for each in zip(*parts, strict=True))
    weight = torch.exp(m - m.amax(0))
    acc = acc.where((l > 0)[..., None], 0.0)
    return (weight[..., None] * acc).sum(0) / (weight * l).sum(0)[:, None]

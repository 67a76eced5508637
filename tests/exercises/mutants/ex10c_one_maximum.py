# caught by: test_scores_of_any_size_can_be_merged
"""One maximum for all heads: far below it every weight is 0."""

import torch


def split_kv(seq_len, num_splits, tile, attend_part):
    num_tiles = (seq_len + tile - 1) // tile
    share = (num_tiles + num_splits - 1) // num_splits * tile
    ranges = [(low, min(low + share, seq_len)) for low in range(0, num_splits * share, share)]
    m, l, acc = (torch.stack(each) for each in zip(*(attend_part(*one) for one in ranges), strict=True))  # noqa: E741
    weight = torch.exp(m - m.max())
    acc = acc.where((l > 0)[..., None], 0.0)
    return (weight[..., None] * acc).sum(0) / (weight * l).sum(0)[:, None]

# caught by: test_parts_weigh_what_their_scores_say
"""Adds up in float64 and stays there."""

import torch


def split_kv(seq_len, num_splits, tile, attend_part):
    num_tiles = (seq_len + tile - 1) // tile
    share = (num_tiles + num_splits - 1) // num_splits * tile
    ranges = [(low, min(low + share, seq_len)) for low in range(0, num_splits * share, share)]
    m, l, acc = (torch.stack(each) for each in zip(*(attend_part(*one) for one in ranges), strict=True))  # noqa: E741
    weight = torch.exp(m - m.amax(0))
    acc = acc.where((l > 0)[..., None], 0.0).double()
    return (weight[..., None] * acc).sum(0) / (weight * l).sum(0)[:, None]

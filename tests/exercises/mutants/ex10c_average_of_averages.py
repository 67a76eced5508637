# caught by: test_parts_weigh_what_their_scores_say
"""Each part counts alike, with large and with small scores."""
# ruff: noqa: E741

import torch


def split_kv(seq_len, num_splits, tile, attend_part):
    num_tiles = (seq_len + tile - 1) // tile
    share = (num_tiles + num_splits - 1) // num_splits * tile
    parts = []
    for i in range(num_splits):
        low, high = i * share, min((i + 1) * share, seq_len)
        parts.append(attend_part(low, high))
    _, l, acc = (torch.stack(each) for each in zip(*parts, strict=True))
    acc = acc.where((l > 0)[..., None], 0.0)
    return (acc / l.where(l > 0, 1.0)[..., None]).sum(0) / (l > 0).sum(0)[:, None]

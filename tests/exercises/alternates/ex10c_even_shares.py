"""Shares that differ by one tile at most, no empty ranges, merged one after the other."""
# ruff: noqa: E741

import torch


def split_kv(seq_len, num_splits, tile, attend_part):
    num_tiles = -(-seq_len // tile)
    splits = min(num_splits, num_tiles)
    each, more = divmod(num_tiles, splits)
    total, low = None, 0
    for i in range(splits):
        high = low + (each + (i < more)) * tile
        m, l, acc = attend_part(low, min(high, seq_len))
        if total is not None:
            old_m, old_l, old_acc = total
            new = torch.maximum(m, old_m)
            left, right = torch.exp(old_m - new), torch.exp(m - new)
            m, l = new, left * old_l + right * l
            acc = left[:, None] * old_acc + right[:, None] * acc
        total, low = (m, l, acc), high
    return total[2] / total[1][:, None]

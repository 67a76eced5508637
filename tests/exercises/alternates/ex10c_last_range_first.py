"""Counts tiles from the end, asks for the last range first, and uses the logarithms of the sums as weights."""
# ruff: noqa: E741

import torch


def split_kv(seq_len, num_splits, tile, attend_part):
    num_tiles = -(-seq_len // tile)
    most = -(-num_tiles // num_splits)
    lows = range(0, seq_len, most * tile)
    parts = [attend_part(low, min(low + most * tile, seq_len)) for low in reversed(lows)]
    totals = torch.stack([m + l.log() for m, l, _ in parts])  # (ranges, Hq)
    outs = torch.stack([acc / l[:, None] for _, l, acc in parts])
    return torch.einsum("rh,rhd->hd", totals.softmax(dim=0), outs)

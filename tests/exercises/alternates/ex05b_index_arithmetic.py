"""One gather for the whole batch, through a mask."""

import torch


def gather_kv(key_cache, block_tables, seq_lens):
    size = key_cache.shape[1]
    gathered = key_cache[block_tables.long()].flatten(1, 2)
    positions = torch.arange(block_tables.shape[1] * size)
    return gathered[positions < seq_lens[:, None]]

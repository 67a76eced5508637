# caught by: test_nothing_behind_the_end_comes_along
"""Multiplies the whole cache by ones and zeros: 0 times the NaN of an old slot is NaN, everywhere."""

import torch


def gather_kv(key_cache, block_tables, seq_lens):
    size = key_cache.shape[1]
    slots = [
        table[p // size] * size + p % size
        for table, seq_len in zip(block_tables.tolist(), seq_lens.tolist(), strict=True)
        for p in range(seq_len)
    ]
    flat = key_cache.flatten(0, 1)
    chosen = torch.zeros(len(slots), flat.shape[0], dtype=key_cache.dtype)
    chosen[range(len(slots)), slots] = 1
    return torch.einsum("ts,shd->thd", chosen, flat)

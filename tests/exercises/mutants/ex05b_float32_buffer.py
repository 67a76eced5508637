# caught by: test_the_dtype_of_the_cache_is_kept
"""Goes through a float32 buffer: the dtype comes back, half of the digits of float64 do not."""

import torch


def gather_kv(key_cache, block_tables, seq_lens):
    out, row = torch.zeros(int(seq_lens.sum()), *key_cache.shape[2:]), 0
    for table, seq_len in zip(block_tables, seq_lens.tolist(), strict=True):
        out[row : row + seq_len] = key_cache[table.long()].flatten(0, 1)[:seq_len]
        row += seq_len
    return out.to(key_cache.dtype)

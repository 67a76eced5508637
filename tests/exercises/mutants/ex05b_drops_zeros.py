# caught by: test_block_zero_is_a_block_like_any_other
"""Drops every 0 of a table as padding."""

import torch


def gather_kv(key_cache, block_tables, seq_lens):
    rows = [
        key_cache[table[table != 0].long()].flatten(0, 1)[:seq_len]
        for table, seq_len in zip(block_tables, seq_lens.tolist(), strict=True)
    ]
    return torch.cat(rows)

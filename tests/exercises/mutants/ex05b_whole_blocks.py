# caught by: test_nothing_behind_the_end_comes_along
"""Returns all slots of the blocks a sequence holds."""

import torch


def gather_kv(key_cache, block_tables, seq_lens):
    size, rows = key_cache.shape[1], []
    for table, seq_len in zip(block_tables.tolist(), seq_lens.tolist(), strict=True):
        rows.append(key_cache[table[: -(-seq_len // size)]].flatten(0, 1))
    return torch.cat(rows)

# caught by: test_block_zero_is_a_block_like_any_other
"""Takes the first 0 for the padding."""

import torch


def gather_kv(key_cache, block_tables, seq_lens):
    rows = []
    for table, seq_len in zip(block_tables.tolist(), seq_lens.tolist(), strict=True):
        used = table[: table.index(0)] if 0 in table else table
        rows.append(key_cache[torch.tensor(used, dtype=torch.long)].flatten(0, 1)[:seq_len])
    return torch.cat(rows)

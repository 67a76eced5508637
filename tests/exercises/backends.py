"""An attention backend made of two parts that can be swapped: how K and V are found, and how they are used.

Both parts here are written for this file from the definition, in float64: they are no fast path of the engine.
"""

import torch


def gather(cache, block_tables, seq_lens):
    """(B, S, Hkv, D) -> (sum of seq_lens, Hkv, D), one token at a time."""
    rows = [
        cache[table[p // cache.shape[1]], p % cache.shape[1]]
        for table, seq_len in zip(block_tables.tolist(), seq_lens.tolist(), strict=True)
        for p in range(seq_len)
    ]
    return torch.stack(rows)


def attend(query, key, value, scale):
    """Attention of the last T of n tokens: query (T, Hq, D), key and value (n, Hkv, D); one head at a time."""
    num_queries, num_heads, _ = query.shape
    num_keys, num_kv_heads, _ = key.shape
    out = torch.empty(query.shape, dtype=torch.float64)
    for head in range(num_heads):
        kv_head = head // (num_heads // num_kv_heads)
        scores = query[:, head].double() @ key[:, kv_head].double().T * scale  # (T, n)
        for row in range(num_queries):
            scores[row, num_keys - num_queries + row + 1 :] = float("-inf")
        out[:, head] = scores.softmax(dim=-1) @ value[:, kv_head].double()
    return out.to(query.dtype)


class StudentAttention:
    """Writes K and V as the engine does, then reads and attends with the given functions."""

    name = "student"

    def __init__(self, gather=gather, attend=attend):
        self._gather, self._attend = gather, attend

    def prepare(self, metadata):
        return metadata

    def forward(self, query, key, value, kv_cache, layer, metadata, scale):
        kv_cache.write(layer, key, value, metadata.slot_mapping)
        seq_lens = metadata.seq_lens
        keys = self._gather(kv_cache.key[layer], metadata.block_tables, seq_lens).split(seq_lens.tolist())
        values = self._gather(kv_cache.value[layer], metadata.block_tables, seq_lens).split(seq_lens.tolist())
        starts = metadata.query_start_loc.tolist()
        rows = [
            self._attend(query[starts[r] : starts[r + 1]], keys[r], values[r], scale)
            for r in range(len(keys))
        ]
        return torch.cat(rows)

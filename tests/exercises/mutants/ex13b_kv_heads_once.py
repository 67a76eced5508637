# caught by: test_more_ranks_than_kv_heads
"""Refuses more ranks than KV heads."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or num_kv_heads % size:
        raise ValueError("cannot be dealt out")
    q, kv = num_heads // size, num_kv_heads // size
    return [(list(range(r * q, r * q + q)), list(range(r * kv, r * kv + kv))) for r in range(size)]

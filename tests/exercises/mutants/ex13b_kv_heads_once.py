# caught by: test_more_ranks_than_kv_heads
"""Gives each KV head to one rank only, so some ranks have query heads and nothing to read."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ValueError("cannot be dealt out")
    q, kv = num_heads // size, max(1, num_kv_heads // size)
    every = list(range(num_kv_heads))
    return [(list(range(r * q, r * q + q)), every[r * kv : r * kv + kv]) for r in range(size)]

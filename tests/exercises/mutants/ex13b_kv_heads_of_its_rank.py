# caught by: test_more_ranks_than_kv_heads
"""With few KV heads, rank r takes KV head r modulo their number."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ValueError("cannot be dealt out")
    q, kv = num_heads // size, max(1, num_kv_heads // size)
    first = [r * kv if num_kv_heads >= size else r % num_kv_heads for r in range(size)]
    return [(list(range(r * q, r * q + q)), list(range(first[r], first[r] + kv))) for r in range(size)]

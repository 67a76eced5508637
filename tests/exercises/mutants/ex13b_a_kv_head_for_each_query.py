# caught by: test_heads_go_with_what_they_read
"""Lists a KV head once for each query head that reads it."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ValueError("cannot be dealt out")
    q, group = num_heads // size, num_heads // num_kv_heads
    return [
        (list(range(r * q, r * q + q)), [head // group for head in range(r * q, r * q + q)])
        for r in range(size)
    ]

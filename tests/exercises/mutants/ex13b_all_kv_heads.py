# caught by: test_heads_go_with_what_they_read
"""Every rank holds all KV heads."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ValueError("cannot be dealt out")
    q = num_heads // size
    return [(list(range(r * q, r * q + q)), list(range(num_kv_heads))) for r in range(size)]

# caught by: test_heads_go_with_what_they_read
"""Deals the query heads out like cards, and the KV heads too."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ValueError("cannot be dealt out")
    kv = [list(range(rank, num_kv_heads, size)) or [rank % num_kv_heads] for rank in range(size)]
    return [(list(range(rank, num_heads, size)), kv[rank]) for rank in range(size)]

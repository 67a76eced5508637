# caught by: test_what_cannot_be_dealt_out_is_refused
"""Looks at the query heads only."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size:
        raise ValueError("cannot be dealt out")
    q, group = num_heads // size, num_heads // num_kv_heads
    queries = [list(range(r * q, (r + 1) * q)) for r in range(size)]
    return [(heads, sorted({head // group for head in heads})) for heads in queries]

# caught by: test_what_cannot_be_dealt_out_is_refused
"""Asks that all ranks hold equally many KV heads, and not that each KV head is on equally many ranks."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size:
        raise ValueError("cannot be dealt out")
    q, group = num_heads // size, num_heads // num_kv_heads
    queries = [list(range(r * q, (r + 1) * q)) for r in range(size)]
    result = [(heads, sorted({head // group for head in heads})) for heads in queries]
    if len({len(kv) for _, kv in result}) > 1:
        raise ValueError("unequal memory")
    return result

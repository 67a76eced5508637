"""From the KV heads: whole ones, or each on several ranks."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ValueError("cannot be dealt out")
    result, q = [], num_heads // size
    for rank in range(size):
        if num_kv_heads >= size:
            each = num_kv_heads // size
            kv = list(range(rank * each, (rank + 1) * each))
        else:
            kv = [rank * num_kv_heads // size]
        result.append(([rank * q + i for i in range(q)], kv))
    return result

"""Asks each rank's heads, then looks whether all hold equally many."""


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size:
        raise ValueError(f"{num_heads} query heads, {size} ranks")
    group, result = num_heads // num_kv_heads, [([], []) for _ in range(size)]
    for head in range(num_heads):
        queries, kv = result[head * size // num_heads]
        queries.append(head)
        if head // group not in kv:
            kv.append(head // group)
    holders = [sum(head in kv for _, kv in result) for head in range(num_kv_heads)]
    if len({len(kv) for _, kv in result}) > 1 or len(set(holders)) > 1:
        raise ValueError(f"{num_kv_heads} KV heads, {size} ranks")
    return result

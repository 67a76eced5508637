"""One query at a time, each over the keys it may see: no mask at all."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    output = torch.empty_like(query)
    for i in range(query.shape[0]):
        position = num_cached + i
        key_cache[position], value_cache[position] = key[i], value[i]
        keys, values = key_cache[: position + 1].transpose(0, 1), value_cache[: position + 1].transpose(0, 1)
        scores = keys @ query[i].unsqueeze(-1) / query.shape[-1] ** 0.5  # (H, n, 1)
        output[i] = (scores.softmax(dim=1) * values).sum(dim=1)
    return output

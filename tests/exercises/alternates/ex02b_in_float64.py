"""One head after the other, in float64, with a mask that is cut out of a larger one."""

import torch


def decode_step(query, key, value, key_cache, value_cache, num_cached):
    end = num_cached + len(query)
    key_cache[num_cached:end].copy_(key)
    value_cache[num_cached:end].copy_(value)
    may_look = torch.ones(end, end, dtype=torch.bool).tril()[num_cached:]
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head].double() @ key_cache[:end, head].double().T / query.shape[-1] ** 0.5
        weights = torch.where(may_look, scores, -torch.inf).softmax(dim=-1)
        heads.append(weights @ value_cache[:end, head].double())
    return torch.stack(heads, dim=1).to(query.dtype)

"""A buffer of one tile, used again for each."""

import torch


def in_tiles(x, product, tile):
    results = []
    for start in range(0, len(x), tile):
        buffer = torch.zeros(tile, x.shape[1], dtype=x.dtype)
        rows = x[start : start + tile]
        buffer[: len(rows)] = rows
        results.append(product(buffer)[: len(rows)])
    return torch.cat(results)

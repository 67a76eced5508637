# caught by: test_each_row_gets_its_own_result
"""Fills up the first tile and cuts off the end."""

import torch


def in_tiles(x, product, tile):
    padded = torch.cat([x.new_zeros(-len(x) % tile, x.shape[1]), x])
    return torch.cat([product(rows) for rows in padded.split(tile)])[: len(x)]

# caught by: test_what_fills_the_tile_up_is_zero
"""Fills up with ones."""

import torch


def in_tiles(x, product, tile):
    padded = torch.cat([x, x.new_ones(-len(x) % tile, x.shape[1])])
    return torch.cat([product(rows) for rows in padded.split(tile)])[: len(x)]

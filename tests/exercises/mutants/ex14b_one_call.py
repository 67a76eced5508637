# caught by: test_every_call_has_the_same_number_of_rows
"""Pads to a multiple of the tile and calls once."""

import torch


def in_tiles(x, product, tile):
    padded = torch.cat([x, x.new_zeros(-len(x) % tile, x.shape[1])])
    return product(padded)[: len(x)]

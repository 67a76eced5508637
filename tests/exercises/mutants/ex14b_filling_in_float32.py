# caught by: test_what_fills_the_tile_up_is_zero
"""torch.zeros without a dtype: the zeros are float32, and so are all rows of a bfloat16 layer that join them."""

import torch


def in_tiles(x, product, tile):
    padded = torch.cat([x, torch.zeros(-len(x) % tile, x.shape[1])])
    return torch.cat([product(rows) for rows in padded.split(tile)])[: len(x)]

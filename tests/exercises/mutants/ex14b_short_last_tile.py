# caught by: test_every_call_has_the_same_number_of_rows
"""The last tile is as short as it happens to be."""

import torch


def in_tiles(x, product, tile):
    return torch.cat([product(rows) for rows in x.split(tile)])

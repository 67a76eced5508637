# caught by: test_each_row_gets_its_own_result
"""Returns the results of the added rows too."""

import torch


def in_tiles(x, product, tile):
    padded = torch.cat([x, x.new_zeros(-len(x) % tile, x.shape[1])])
    return torch.cat([product(rows) for rows in padded.split(tile)])

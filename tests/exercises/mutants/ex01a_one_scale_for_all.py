# caught by: test_rows_are_scaled_to_size_one
"""One mean for the whole batch: batch mates change the result."""

import torch


def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide / torch.sqrt(wide.square().mean() + eps)).to(x.dtype) * weight

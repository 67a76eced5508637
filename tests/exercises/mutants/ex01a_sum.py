# caught by: test_rows_are_scaled_to_size_one
"""Divides by the length of the row: a sum where the mean belongs."""

import torch


def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide / torch.sqrt(wide.square().sum(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight

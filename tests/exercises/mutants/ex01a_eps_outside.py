# caught by: test_a_row_of_zeros_stays_zero
"""Adds eps outside the root."""

import torch


def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide / (torch.sqrt(wide.square().mean(dim=-1, keepdim=True)) + eps)).to(x.dtype) * weight

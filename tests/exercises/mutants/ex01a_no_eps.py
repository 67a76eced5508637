# caught by: test_a_row_of_zeros_stays_zero
"""Forgets eps: zeros become NaN."""

import torch


def rms_norm(x, weight, eps):
    wide = x.float()
    return (wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True))).to(x.dtype) * weight

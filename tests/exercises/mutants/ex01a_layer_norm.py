# caught by: test_the_scale_of_the_input_does_not_matter
"""Subtracts the mean: that is LayerNorm."""

import torch


def rms_norm(x, weight, eps):
    wide = x.float()
    wide = wide - wide.mean(dim=-1, keepdim=True)
    return (wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight

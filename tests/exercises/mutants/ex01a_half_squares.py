# caught by: test_half_precision_does_not_overflow
"""Squares in the dtype of x."""

import torch


def rms_norm(x, weight, eps):
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight

"""Multiplies by the inverse root."""

import torch


def rms_norm(x, weight, eps):
    mean_square = torch.mean(x.to(torch.float64) ** 2, dim=1)
    return torch.rsqrt(mean_square + eps).unsqueeze(1).mul(x).to(x.dtype) * weight

"""Pairs as complex numbers, one product with a number of length 1; float32 in between."""

import torch


def apply_rope(heads, positions, theta):
    first, second = heads.float().chunk(2, dim=-1)
    frequencies = 1.0 / theta ** (torch.arange(0, heads.shape[-1], 2) / heads.shape[-1])
    angles = torch.outer(positions.float(), frequencies).unsqueeze(1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).to(heads.dtype)

# caught by: test_far_positions_are_told_apart
"""Frequencies with 8 bits: far away the error is many turns."""

import torch


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    exponents = -torch.arange(half) / half
    angles = (positions[:, None] * (theta**exponents).to(heads.dtype).float()).unsqueeze(1)
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

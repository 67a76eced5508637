"""Both halves, one product each."""

import torch


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half).float() / half)
    angles = (positions[:, None].float() * frequencies)[:, None]
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

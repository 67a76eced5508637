# caught by: test_position_zero_turns_nothing
"""Positions count from 1."""

import torch


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half).float() / half)
    angles = ((positions[:, None].float() + 1) * frequencies)[:, None]
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

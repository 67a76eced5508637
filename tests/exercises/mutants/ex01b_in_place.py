# caught by: test_the_input_is_left_alone
"""Writes into its input."""

import torch


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half).float() / half)
    angles = (positions[:, None].float() * frequencies)[:, None]
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return heads.copy_(turned)

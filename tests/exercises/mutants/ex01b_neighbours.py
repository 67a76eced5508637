# caught by: test_pairs_are_first_and_second_half
"""Pairs of neighbours: the other layout."""

import torch


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half).float() / half)
    angles = (positions[:, None].float() * frequencies)[:, None]
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads[..., 0::2], heads[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)

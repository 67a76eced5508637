# caught by: test_the_angles_are_those_of_the_formula
"""Keeps the frequencies of the first call, and looks at D alone when it wants them again: theta is forgotten."""

import torch

TABLES = {}


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    if half not in TABLES:
        TABLES[half] = theta ** (-torch.arange(half).float() / half)
    angles = (positions[:, None].float() * TABLES[half])[:, None]
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)

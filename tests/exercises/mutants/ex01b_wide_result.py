# caught by: test_far_positions_are_told_apart
"""cos and sin stay in float32, and so does the result."""

import torch


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    exponents = -torch.arange(half) / half
    angles = (positions[:, None] * theta**exponents).unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

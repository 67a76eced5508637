# caught by: test_a_score_depends_on_the_distance_only
"""One sign wrong: a reflection, not a rotation, so scores depend on where the tokens stand."""

import torch


def apply_rope(heads, positions, theta):
    half = heads.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half).float() / half)
    angles = (positions[:, None].float() * frequencies)[:, None]
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, first * sin - second * cos], dim=-1)

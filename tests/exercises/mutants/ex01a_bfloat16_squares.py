# caught by: test_bfloat16_is_computed_in_float32
"""Widens float16 only, because bfloat16 cannot overflow: it has 8 bits all the same."""

import torch


def rms_norm(x, weight, eps):
    wide = x.float() if x.dtype == torch.float16 else x
    return (wide / torch.sqrt(wide.square().mean(dim=-1, keepdim=True) + eps)).to(x.dtype) * weight

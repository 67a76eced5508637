# caught by: test_the_norm_leaves_its_input_alone_and_keeps_its_dtype
"""Goes back to float16, though x was bfloat16."""

import torch


def rms_norm(x, weight, eps):
    wide = x.float()
    dtype = torch.float32 if x.dtype == torch.float32 else torch.float16
    return (wide * (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()).to(dtype) * weight.to(dtype)

# caught by: test_the_norm_leaves_its_input_alone_and_keeps_its_dtype
"""Writes into its input."""


def rms_norm(x, weight, eps):
    x *= (x.float().square().mean(dim=-1, keepdim=True) + eps).rsqrt().to(x.dtype)
    return x * weight

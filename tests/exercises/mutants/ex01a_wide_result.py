# caught by: test_half_precision_does_not_overflow
"""Forgets to go back to the dtype of x."""


def rms_norm(x, weight, eps):
    wide = x.float()
    return wide * (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight.float()

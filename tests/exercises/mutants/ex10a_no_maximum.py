# caught by: test_large_scores_do_not_overflow
"""Puts both parts on the scale of 0 before it adds them."""
# ruff: noqa: E741

import torch


def merge(a, b):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
    m = torch.maximum(m_a, m_b)
    weight_a, weight_b = torch.exp(m_a), torch.exp(m_b)
    acc_a, acc_b = acc_a.where((l_a > 0)[..., None], 0.0), acc_b.where((l_b > 0)[..., None], 0.0)
    l = weight_a * l_a + weight_b * l_b
    acc = weight_a[..., None] * acc_a + weight_b[..., None] * acc_b
    back = torch.exp(-m).where(l > 0, 0.0)
    return m, l * back, acc * back[..., None]

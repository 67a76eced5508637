# caught by: test_any_cut_gives_the_same_attention
"""Rounds everything to float32, float64 parts too."""
# ruff: noqa: E741

import torch


def merge(a, b):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = ([each.float() for each in part] for part in (a, b))
    m = torch.maximum(m_a, m_b)
    base = m.where(m > float("-inf"), 0.0)
    weight_a, weight_b = torch.exp(m_a - base), torch.exp(m_b - base)
    acc_a, acc_b = acc_a.where((l_a > 0)[..., None], 0.0), acc_b.where((l_b > 0)[..., None], 0.0)
    l = weight_a * l_a + weight_b * l_b
    acc = weight_a[..., None] * acc_a + weight_b[..., None] * acc_b
    return m, l, acc

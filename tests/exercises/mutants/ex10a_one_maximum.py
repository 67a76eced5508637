# caught by: test_large_scores_do_not_overflow
"""One maximum for all heads: far below it every weight is 0."""

import torch


def merge(a, b):
    m_a, l_a, acc_a = a
    m_b, l_b, acc_b = b
    m = torch.maximum(m_a, m_b)
    base = m.max().clamp(min=-1e30)
    weight_a, weight_b = torch.exp(m_a - base), torch.exp(m_b - base)
    acc_a = acc_a.where((l_a > 0)[..., None], 0.0)
    acc_b = acc_b.where((l_b > 0)[..., None], 0.0)
    acc = weight_a[..., None] * acc_a + weight_b[..., None] * acc_b
    return m, weight_a * l_a + weight_b * l_b, acc

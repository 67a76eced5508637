# caught by: test_some_rows_may_be_without_keys
"""Asks once for all rows whether a part is without keys."""
# ruff: noqa: E741

import torch


def merge(a, b):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
    m = torch.maximum(m_a, m_b)
    base = m.where(m > float("-inf"), 0.0)
    weight_a, weight_b = torch.exp(m_a - base), torch.exp(m_b - base)
    if not (l_a > 0).any():
        return b
    if not (l_b > 0).any():
        return a
    l = weight_a * l_a + weight_b * l_b
    acc = weight_a[..., None] * acc_a + weight_b[..., None] * acc_b
    return m, l, acc

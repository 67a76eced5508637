# caught by: test_a_part_without_keys_changes_nothing
"""Trusts a weight of 0 to hide what was never written."""
# ruff: noqa: E741

import torch


def merge(a, b):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
    m = torch.maximum(m_a, m_b)
    base = m.where(m > float("-inf"), 0.0)
    weight_a, weight_b = torch.exp(m_a - base), torch.exp(m_b - base)
    l = weight_a * l_a + weight_b * l_b
    acc = weight_a[..., None] * acc_a + weight_b[..., None] * acc_b
    return m, l, acc

# caught by: test_a_part_without_keys_changes_nothing
"""Writes zeros over what was not written, in the caller's tensor."""

import torch


def merge(a, b):
    m_a, l_a, acc_a = a
    m_b, l_b, acc_b = b
    acc_a[l_a == 0] = 0.0
    acc_b[l_b == 0] = 0.0
    m = torch.maximum(m_a, m_b)
    base = m.where(m > float("-inf"), 0.0)
    weight_a, weight_b = torch.exp(m_a - base), torch.exp(m_b - base)
    acc = weight_a[..., None] * acc_a + weight_b[..., None] * acc_b
    return m, weight_a * l_a + weight_b * l_b, acc

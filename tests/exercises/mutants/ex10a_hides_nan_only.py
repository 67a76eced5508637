# caught by: test_a_part_without_keys_changes_nothing
"""Takes NaN out of acc: infinities stay, and 0 times infinity is NaN."""

import torch


def merge(a, b):
    m_a, l_a, acc_a = a
    m_b, l_b, acc_b = b
    m = torch.maximum(m_a, m_b)
    base = m.where(m > float("-inf"), 0.0)
    weight_a, weight_b = torch.exp(m_a - base), torch.exp(m_b - base)
    acc_a = acc_a.where(~acc_a.isnan(), 0.0)
    acc_b = acc_b.where(~acc_b.isnan(), 0.0)
    acc = weight_a[..., None] * acc_a + weight_b[..., None] * acc_b
    return m, weight_a * l_a + weight_b * l_b, acc

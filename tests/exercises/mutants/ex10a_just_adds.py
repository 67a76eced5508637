# caught by: test_any_cut_gives_the_same_attention
"""Adds both sums as if they were relative to one maximum."""
# ruff: noqa: E741

import torch


def merge(a, b):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
    m = torch.maximum(m_a, m_b)
    acc_a, acc_b = acc_a.where((l_a > 0)[..., None], 0.0), acc_b.where((l_b > 0)[..., None], 0.0)
    l = l_a + l_b
    acc = acc_a + acc_b
    return m, l, acc

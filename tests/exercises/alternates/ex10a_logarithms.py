"""By way of log(l): the sum of exponentials without any reference, in logarithms."""

import torch


def merge(a, b):
    (m_a, l_a, acc_a), (m_b, l_b, acc_b) = a, b
    m = torch.maximum(m_a, m_b)
    total = torch.logaddexp(m_a + l_a.log(), m_b + l_b.log())
    acc = torch.zeros_like(acc_a)
    for m_i, l_i, acc_i in ((m_a, l_a, acc_a), (m_b, l_b, acc_b)):
        has_keys = l_i > 0
        acc[has_keys] += torch.exp(m_i - m)[has_keys][..., None] * acc_i[has_keys]
    return m, torch.exp(total - m).nan_to_num(0.0), acc

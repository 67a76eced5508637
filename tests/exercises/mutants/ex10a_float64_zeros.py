# caught by: test_any_shape_and_dtype_will_do
"""New tensors in float64, for every dtype of the parts."""

import torch


def merge(a, b):
    m = torch.maximum(a[0], b[0])
    base = m.where(m > float("-inf"), 0.0)
    l, acc = torch.zeros(m.shape).double(), torch.zeros(a[2].shape).double()  # noqa: E741
    for m_i, l_i, acc_i in (a, b):
        weight = torch.exp(m_i - base)
        l = l + weight * l_i  # noqa: E741
        acc = acc + weight[..., None] * acc_i.where((l_i > 0)[..., None], 0.0)
    return m, l, acc

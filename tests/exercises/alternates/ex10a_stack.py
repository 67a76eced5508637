"""Both parts stacked; the larger of two exponents decides, and NaN is replaced by 0."""
# ruff: noqa: E741

import torch


def merge(a, b):
    m, l, acc = (torch.stack(pair) for pair in zip(a, b, strict=True))
    largest = m.max(dim=0).values
    weight = torch.exp(m - largest).nan_to_num(0.0)
    acc = torch.where(l.unsqueeze(-1) == 0, torch.zeros_like(acc), acc)
    return largest, (weight * l).sum(0), torch.einsum("p...,p...d->...d", weight, acc)

"""The merge of split-KV's partial softmaxes."""

import math

import pytest
import torch

from minivllm.kernels.combine import combine, combine_reference

# A kernel that computes inf - inf or 0 / 0 in a row it then masks is a warning in the interpreter.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def parts_of(values: list[float], scores: list[float], device: torch.device) -> tuple[torch.Tensor, ...]:
    """One part for each (value, score): part_acc (1, 1, splits, 1), part_m and part_l (1, 1, splits)."""
    m = torch.tensor(scores, device=device)[None, None] / math.log(2)  # in units of log 2
    return torch.tensor(values, device=device)[None, None, :, None], m, torch.ones_like(m)


def test_the_example_in_the_docstring(device):
    """Catches a docstring that teaches wrong numbers: values 1, 2, 3 with scores 0, 2, 1 give 2.155."""
    parts = parts_of([1.0, 2.0, 3.0], [0.0, 2.0, 1.0], device)
    expected = torch.softmax(torch.tensor([0.0, 2.0, 1.0]), 0) @ torch.tensor([1.0, 2.0, 3.0])
    out = combine(*parts, torch.empty(1, 1, 1, device=device)).item()
    assert abs(out - expected.item()) < 1e-6 and round(out, 3) == 2.155
    assert abs(combine_reference(*parts).item() - out) < 1e-6


def test_parts_that_are_empty_are_never_read(device):
    """Catches 0 * NaN: the acc of an empty part is memory that was not written."""
    acc = torch.randn(2, 3, 5, 80, device=device)
    m, l = torch.randn(2, 3, 5, device=device), torch.rand(2, 3, 5, device=device) + 0.5  # noqa: E741
    for r, split in ((0, 4), (0, 0), (1, 2)):
        acc[r, :, split], m[r, :, split], l[r, :, split] = math.nan, -math.inf, 0.0
    out = combine(acc, m, l, torch.empty(2, 3, 80, device=device))
    weight = (2.0**m * l.sign()).double()
    expected = (weight[..., None] * acc.double().nan_to_num(0.0)).sum(2) / (weight * l).sum(2, keepdim=True)
    assert (out - expected).abs().max() < 1e-5
    assert (out.roll(1, 0) - expected).abs().max() > 0.1  # the assertion above can fail


def test_all_parts_empty_gives_zeros(device):
    """Catches -inf - -inf and 0 / 0 for a sequence of length 0."""
    acc, m = (
        torch.full((1, 2, 4, 16), math.nan, device=device),
        torch.full((1, 2, 4), -math.inf, device=device),
    )
    for merged in (
        combine(acc, m, torch.zeros_like(m), torch.empty(1, 2, 16, device=device)),
        combine_reference(acc, m, torch.zeros_like(m)),
    ):
        assert torch.all(merged == 0)


def test_maxima_far_apart_do_not_overflow(device):
    """Catches weights relative to anything but the largest maximum: 2^2000 is infinite."""
    parts = parts_of([1.0, 2.0], [-1000.0, 1000.0], device)
    assert combine(*parts, torch.empty(1, 1, 1, device=device)).item() == 2.0

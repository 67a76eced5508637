"""The products of `linear_cpu.py` against float64, and the choice among them with stand-ins for a machine."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from minivllm import kernels
from minivllm.kernels import linear_cpu
from minivllm.kernels.linear_cpu import (
    KINDS,
    MklLinear,
    OneDnnLinear,
    PanelLinear,
    TorchLinear,
    TransposedLinear,
    agrees,
    choose_linear_kernel,
    fastest,
    sample,
)

# Sums of up to 577 products of standard normal numbers: float32 is some 1e-5 off, another row some 20.
TOLERANCE = 1e-3
EVERYWHERE = {TorchLinear, TransposedLinear}
WITH_NUMBA = EVERYWHERE | {PanelLinear}


@pytest.fixture
def large(monkeypatch):
    """Weights of a few kilobytes count as a model worth measuring."""
    monkeypatch.setattr(linear_cpu, "SMALLEST_BYTES", 0)
    return [torch.randn(64, 48), torch.randn(48, 64), torch.randn(64, 48)]


class Never:
    """A stand-in for the measurement which must not be asked."""

    def __call__(self, kinds, weights):
        raise AssertionError("measured although the choice was known")


def last(kinds, weights):
    """A stand-in for the measurement: the last of the kinds is the fastest one."""
    return kinds[-1], True


class Doubled(TorchLinear):
    """A product that is fast and wrong."""

    name = "doubled"

    def __call__(self, x):
        return 2 * super().__call__(x)


class WrongBias(TorchLinear):
    """A product that is wrong with a bias only."""

    name = "no bias"

    def __init__(self, weight, bias):
        super().__init__(weight, None)


def assert_product(actual, x, weight, bias):
    """The one assertion on numbers."""
    expected = x.double() @ weight.double().t()
    if bias is not None:
        expected += bias.double()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(960, 576), (48, 80), (577, 61), (1, 3)])
def test_a_product_is_right_for_any_number_of_rows(kind, has_bias, shape):
    """Would catch a packed weight that is right only for the number of rows it was packed for."""
    weight, bias = torch.randn(shape), torch.randn(shape[0]) if has_bias else None
    if not agrees(kind, weight):
        kind = TorchLinear  # a machine without this library
    linear = kind(weight, bias)
    for rows in (1, 2, 3, 7, 16, 31, 32, 33, 64, 100, 257):
        x = torch.randn(rows, 2 * shape[1])[:, : shape[1]]  # not contiguous
        assert_product(linear(x), x, weight, bias)
        with pytest.raises(AssertionError):  # negative control: another row's result
            assert_product(linear(x + 1), x, weight, bias)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_bfloat16_weights_are_multiplied_or_the_product_is_not_offered(kind):
    """Would catch a library that takes bfloat16 weights and gives noise."""
    weight = torch.randn(64, 48).bfloat16()
    if kind in EVERYWHERE:
        assert agrees(kind, weight)
    if agrees(kind, weight):
        x = torch.randn(5, 48).bfloat16()
        actual = kind(weight, None)(x)
        assert actual.dtype == torch.bfloat16
        torch.testing.assert_close(actual, F.linear(x, weight), rtol=0.02, atol=0.1)
        with pytest.raises(AssertionError):  # negative control
            torch.testing.assert_close(actual, F.linear(x + 1, weight), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(64, 48), (65, 47)])
def test_float32_rows_and_bfloat16_weights_make_float32(kind, shape):
    """Would catch an error about two dtypes, and, in panels, a last number without a partner."""
    weight, bias = torch.randn(shape).bfloat16(), torch.randn(shape[0]).bfloat16()
    if not agrees(kind, weight):
        kind = TorchLinear
    x = torch.randn(5, shape[1])
    actual = kind(weight, bias)(x)
    assert actual.dtype == torch.float32
    expected = F.linear(x.bfloat16().float(), weight.float(), bias.float())
    torch.testing.assert_close(actual, expected, rtol=0.01, atol=0.1)
    if kind is PanelLinear:  # its sums are not rounded
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrong", [Doubled, WrongBias])
def test_a_product_which_disagrees_is_not_offered(wrong, dtype, large, monkeypatch):
    """Would catch trust in a private operator: should it change, the model gets slower and not wrong."""
    monkeypatch.setattr(linear_cpu, "KINDS", (TorchLinear, wrong))
    assert not agrees(wrong, large[0].to(dtype))
    assert choose_linear_kernel([weight.to(dtype) for weight in large], measure=last) is TorchLinear


def missing(*args):
    """What PyTorch does for an operator which this build does not have."""
    raise AttributeError("'_OpNamespace' object has no attribute")


def not_compiled(*args):
    """What PyTorch does where the operator has a name and no code: oneDNN without the processor for it."""
    raise RuntimeError("mkldnn_reorder_linear_weight: ATen not compiled with MKLDNN support")


@pytest.mark.parametrize("error", [missing, not_compiled])
def test_without_mkl_and_onednn_the_choice_is_among_the_others(error, large, monkeypatch):
    """Would catch a model that needs an x86 processor: ARM has no MKL, and Windows on ARM no oneDNN either."""
    monkeypatch.setattr(MklLinear, "__init__", error)
    monkeypatch.setattr(OneDnnLinear, "__init__", error)
    offered = []
    choose_linear_kernel(large, measure=lambda kinds, weights: offered.extend(kinds) or (kinds[0], True))
    assert set(offered) == WITH_NUMBA


def test_without_numba_the_choice_is_among_the_others(large, monkeypatch):
    """Would catch a model that needs Numba: it has no release for a new Python in its first months."""
    monkeypatch.setitem(sys.modules, "minivllm.kernels.matmul_cpu", None)
    monkeypatch.delattr(kernels, "matmul_cpu", raising=False)
    assert not agrees(PanelLinear, large[0])
    assert {kind for kind in KINDS if agrees(kind, large[0])} >= EVERYWHERE


def test_the_operators_are_looked_up_when_a_weight_is_packed(monkeypatch):
    """Would catch a lookup while the module is imported: where an operator is missing, nothing would load."""
    monkeypatch.delattr(torch.ops.mkl, "_mkl_reorder_linear_weight", raising=False)
    monkeypatch.setattr(torch.ops, "mkl", object())
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    weight = torch.randn(64, 48)
    assert {kind for kind in KINDS if agrees(kind, weight)} == WITH_NUMBA


def test_a_small_model_is_not_measured():
    """Would catch a second of measurement for a model whose products take microseconds."""
    assert choose_linear_kernel([torch.randn(64, 48)], measure=Never()) is TorchLinear


def test_the_choice_is_remembered_for_these_shapes_and_dtype(large, tmp_path):
    """Would catch a second lost at every start, and a choice taken over by a model of other shapes."""
    memory = tmp_path / "new folder" / "choices.json"
    kinds = [TransposedLinear, TorchLinear]
    for _ in range(2):
        assert choose_linear_kernel(large, memory, lambda *_: (kinds[0], True)) is kinds[0]
    assert choose_linear_kernel(large, memory, Never()) is kinds[0]
    # Other shapes: measured, and remembered beside the first.
    other = [torch.randn(32, 48)]
    for _ in range(2):
        assert choose_linear_kernel(other, memory, lambda *_: (kinds[1], True)) is kinds[1]
    for weights, kind in ((large, kinds[0]), (other, kinds[1])):
        assert choose_linear_kernel(weights, memory, Never()) is kind
    with pytest.raises(AssertionError, match="measured"):
        choose_linear_kernel([weight.bfloat16() for weight in large], memory, Never())
    assert [path.name for path in memory.parent.iterdir()] == ["choices.json"]  # nothing half written


@pytest.mark.parametrize("num_threads", [1, 2])
def test_another_number_of_threads_is_another_choice(num_threads, large, tmp_path, monkeypatch):
    """Would catch the choice for 16 threads kept for 1: more threads share one memory, so the best may differ."""
    for _ in range(2):
        choose_linear_kernel(large, tmp_path / "choices.json", last)
    (key,) = json.loads((tmp_path / "choices.json").read_text())
    monkeypatch.setattr(torch, "get_num_threads", lambda: int(key.split(" | ")[3]) + num_threads)
    with pytest.raises(AssertionError, match="measured"):
        choose_linear_kernel(large, tmp_path / "choices.json", Never())


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", "null", '"text"', "{}", b"\xff\xfe", '{"x": 7}'], ids=repr
)
def test_a_broken_memory_is_ignored_and_mended(content, large, tmp_path):
    """Would catch a program that does not start because another one was stopped while it wrote."""
    memory = tmp_path / "choices.json"
    memory.write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in range(2):
        assert choose_linear_kernel(large, memory, lambda *_: (TransposedLinear, True)) is TransposedLinear
    assert choose_linear_kernel(large, memory, Never()) is TransposedLinear


def test_a_choice_counts_once_two_measurements_agree(large, tmp_path):
    """Would catch one start beside another program which makes all later ones slow."""
    memory = tmp_path / "choices.json"
    for kind in (TransposedLinear, TorchLinear, TransposedLinear, TorchLinear, TorchLinear):
        assert choose_linear_kernel(large, memory, lambda *_, kind=kind: (kind, True)) is kind
    assert choose_linear_kernel(large, memory, Never()) is TorchLinear


@pytest.mark.parametrize("name", ["a product of next year", 7, None, ["mm"], ["x", "x"], [7, 7]])
def test_a_remembered_name_which_is_not_offered_here_is_measured_anew(name, large, tmp_path):
    """Would catch a choice from a newer version, or one that an update of PyTorch has taken away."""
    memory = tmp_path / "choices.json"
    choose_linear_kernel(large, memory, last)
    (key,) = json.loads(memory.read_text())
    memory.write_text(json.dumps({key: name}))
    assert choose_linear_kernel(large, memory, lambda *_: (TransposedLinear, True)) is TransposedLinear


def test_a_remembered_product_which_disagrees_today_is_not_used(large, tmp_path, monkeypatch):
    """Would catch a check that is skipped because the name was found in a file."""
    memory = tmp_path / "choices.json"
    for _ in range(2):
        choose_linear_kernel(large, memory, lambda *_: (TransposedLinear, True))
    monkeypatch.setattr(TransposedLinear, "__call__", lambda self, x: 2 * x.mm(self._weight))
    assert choose_linear_kernel(large, memory, lambda *_: (TorchLinear, True)) is TorchLinear


def test_a_hurried_choice_is_used_and_not_remembered(large, tmp_path):
    """Would catch one busy start that makes all later ones slow."""
    memory = tmp_path / "choices.json"
    assert choose_linear_kernel(large, memory, lambda *_: (TransposedLinear, False)) is TransposedLinear
    assert not memory.exists()
    for _ in range(2):
        assert choose_linear_kernel(large, memory, lambda *_: (TorchLinear, True)) is TorchLinear
    assert choose_linear_kernel(large, memory, Never()) is TorchLinear


def test_a_folder_that_cannot_be_written_only_costs_the_memory(large, tmp_path):
    """Would catch an error at start-up in a container whose home is read-only."""
    (tmp_path / "file").write_text("")
    memory = tmp_path / "file" / "choices.json"  # its folder is a file
    assert choose_linear_kernel(large, memory, lambda *_: (TransposedLinear, True)) is TransposedLinear


class Clock:
    """Time which passes only inside a product."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(linear_cpu.time, "perf_counter", lambda: self.now)

    def product(self, seconds):
        """A kind whose product of some rows takes `seconds(rows)`."""
        clock = self

        class Timed(TorchLinear):
            name = "timed"

            def __call__(self, x):
                clock.now += seconds(x.shape[0])
                return x

        return Timed


def test_the_fastest_is_the_one_with_the_least_relative_time(monkeypatch):
    """Would catch the largest product deciding alone: 3 times slower for 1 row is not paid by 10% at 128."""
    clock = Clock(monkeypatch)
    slow_start = clock.product(lambda rows: 3.0 if rows == 1 else 0.95 * rows)
    even = clock.product(float)
    for kinds in ([slow_start, even], [even, slow_start]):
        assert fastest(kinds, [torch.ones(2, 3)], seconds=math.inf) == (even, True)
    kinds = [slow_start, clock.product(lambda rows: 4.0 * rows)]
    assert fastest(kinds, [torch.ones(2, 3)], seconds=math.inf) == (slow_start, True)


def test_a_disturbed_round_does_not_decide(monkeypatch):
    """Would catch a mean: another program's second inside one product of the better kind."""
    clock = Clock(monkeypatch)
    disturbances = iter([100.0] * 4)
    better = clock.product(lambda rows: 1.0 + next(disturbances, 0.0))
    kinds = [clock.product(lambda rows: 1.1), better]
    assert fastest(kinds, [torch.ones(2, 3)], seconds=math.inf) == (better, True)


def test_the_measurement_ends_in_time_and_says_so(monkeypatch):
    """Would catch a start of half a minute beside a browser, and its hurried choice remembered for good."""
    clock = Clock(monkeypatch)
    worse, better = clock.product(lambda rows: 0.2), clock.product(lambda rows: 0.1)
    assert fastest([worse, better], [torch.ones(2, 3)], rounds=3, seconds=1.0) == (better, False)
    assert clock.now == pytest.approx(1.2)  # 4 numbers of rows; the last one began before the second was over
    assert fastest([worse, better], [torch.ones(2, 3)], rounds=3, seconds=10.0) == (better, True)


@pytest.mark.parametrize("ahead, wins", [(0.97, False), (0.93, True)])
def test_a_copy_has_to_pay(ahead, wins, monkeypatch):
    """Would catch memory spent, and a choice that changes from start to start, for a hundredth of the time."""
    clock = Clock(monkeypatch)
    kinds = [clock.product(lambda rows: 1.0), clock.product(lambda rows: ahead)]
    assert fastest(kinds, [torch.ones(2, 3)], seconds=math.inf) == (kinds[wins], True)


def test_a_sample_of_the_weights_is_measured():
    """Would catch a start of a minute for a model of 30 layers, and a sample which fits into a cache."""
    weights = [torch.ones(10, 25) for _ in range(9)]  # 1,000 bytes each
    assert len(sample(weights, most_bytes=3500)) == 4
    assert len(sample(weights, most_bytes=10**6)) == 9
    assert linear_cpu.SAMPLE_BYTES >= 16 << 20

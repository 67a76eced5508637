"""The Numba kernels of `rows_cpu.py` against float64 and against their slow twins in plain torch."""

import math

import numba
import numpy as np
import pytest
import torch

from minivllm.backends.layers_kernels import LayerKinds, layer_kinds
from minivllm.config import ModelConfig, RopeConfig
from minivllm.kernels.rms_norm import rms_norm_reference
from minivllm.kernels.rotary_embedding import rotary_embedding_reference
from minivllm.kernels.rows_cpu import exp, rms_norm_cpu, rotary_embedding_cpu, silu_and_mul_cpu
from minivllm.kernels.silu_and_mul import silu_and_mul_reference
from minivllm.layers import Build, RMSNorm, RotaryEmbedding, silu_and_mul

# Relative to max(|expected|, 1). float32 is good for 6e-8; a norm sums up to 1,000 squares.
TOLERANCE = 2e-6
# With 800 rows of 41 numbers or more, the threads share the work.
ROWS = [0, 1, 3, 65, 800]


class Named:
    """An attention backend of which the name alone counts."""

    def __init__(self, name):
        self.name = name


def build_of(name, dtype=torch.float32):
    """What layers are made from; hidden 48, 6 + 2 heads of 16."""
    config = ModelConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=300,
        rope=RopeConfig(),
    )
    return Build(config, Named(name), dtype, torch.device("cpu"))


def assert_close(actual, expected):
    """The one assertion on values (NaN fails too)."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs() / expected.double().abs().clamp(min=1.0)
    assert error.numel() == 0 or error.max().item() <= TOLERANCE


def rms_norm64(x, weight, eps):
    """RMSNorm in float64."""
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def norm(hidden, update, weight, eps=1e-5):
    """`rms_norm_cpu` with tensors."""
    normed, total = torch.full_like(hidden, math.nan), torch.full_like(hidden, math.nan)
    arrays = (tensor.numpy() for tensor in (hidden, update, weight))
    rms_norm_cpu(*arrays, np.float32(eps), normed.numpy(), total.numpy())
    return normed, total


# -- exp --------------------------------------------------------------------------------------------


@numba.njit
def exp_of_all(x, out):
    for i in range(len(x)):
        out[i] = exp(x[i])


def exp32(x):
    """`exp` for an array of float32."""
    out = np.full_like(x, np.nan)
    exp_of_all(x, out)
    return out.astype(np.float64)


def error_of_exp(x, y):
    """The relative error of y as e^x, as a part of what the docstring allows."""
    wide = x.astype(np.float64)
    return (np.abs(y / np.exp(wide) - 1) / (3e-7 + 8e-8 * np.abs(wide))).max()


def test_exp_has_the_error_it_states():
    """Would catch a coefficient with a wrong digit; all of -87 to 0, and the halves where k changes."""
    x = np.linspace(-87, 0, 1_000_001, dtype=np.float32)
    halves = (np.arange(-125, 0, dtype=np.float64) + 0.5) * math.log(2)
    edges = np.concatenate([np.nextafter(halves.astype(np.float32), np.float32(to)) for to in (-100, 100)])
    for numbers in (x, edges):
        y = exp32(numbers)
        assert error_of_exp(numbers, y) <= 1
        assert error_of_exp(numbers, y * (1 + 7e-6)) > 1  # negative control: 60 roundings


def test_exp_of_zero_is_one_and_of_minus_infinity_next_to_nothing():
    """Would catch a first block whose rescaling is NaN: the maximum before it is -inf."""
    y = exp32(np.array([0, -88, -1e4, -np.inf], dtype=np.float32))
    assert y[0] == 1
    assert (y[1:] == 2.0**-126).all()


# -- the kernels beside their twins -----------------------------------------------------------------


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [1, 48, 577])
def test_rms_norm_cpu_adds_and_norms(rows, size):
    """Would catch the norm of one of the two, and a sum that is not the next layer's residual."""
    hidden, update, weight = torch.randn(rows, size), torch.randn(rows, size), torch.randn(size)
    before = hidden.clone(), update.clone()
    normed, total = norm(hidden, update, weight)
    expected, expected_total = rms_norm_reference(update, weight, 1e-5, hidden)
    assert torch.equal(total, expected_total)
    assert_close(normed, expected)
    assert_close(normed, rms_norm64(total, weight, 1e-5))
    assert torch.equal(hidden, before[0]) and torch.equal(update, before[1])


@pytest.mark.parametrize("size", [48, 577])
def test_the_tolerance_rejects_wrong_norms(size):
    """Negative control: no weight, no update, another eps, a mean over one number more, zeros."""
    hidden, update, weight = torch.randn(3, size), torch.randn(3, size), torch.randn(size)
    normed, total = norm(hidden, update, weight)
    right = rms_norm64(total, weight, 1e-5)
    assert_close(normed, right)
    for wrong in (
        rms_norm64(total, torch.ones(size), 1e-5),
        rms_norm64(hidden, weight, 1e-5),
        rms_norm64(total, weight, 1e-3),
        right * math.sqrt((size + 1) / size),
        0 * right,
    ):
        with pytest.raises(AssertionError):
            assert_close(wrong, right)


def test_a_row_of_zeros_gives_zeros():
    """Would catch a missing eps: 0 / 0."""
    zeros = torch.zeros(2, 8)
    for result in norm(zeros, zeros, torch.ones(8)):
        assert torch.equal(result, zeros)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("head_dim", [2, 16, 80])
def test_rotary_embedding_cpu_turns_the_first_heads(rows, head_dim):
    """Would catch halves exchanged, a sign, a row that is skipped over, and values that are rotated too."""
    table = torch.randn(300, head_dim)
    positions = torch.randint(0, 300, (rows,))
    heads = torch.randn(rows, 5, head_dim)  # 3 of them are rotated
    rotated = torch.full((rows, 3, head_dim), math.nan)
    rotary_embedding_cpu(heads.numpy(), positions.numpy(), table.numpy(), rotated.numpy())
    query, key = rotary_embedding_reference(positions, heads[:, :2], heads[:, 2:3], table)
    expected = torch.cat((query, key), dim=1)
    assert_close(rotated, expected)
    if rows:  # negative control: the next position
        query, key = rotary_embedding_reference((positions + 1) % 300, heads[:, :2], heads[:, 2:3], table)
        with pytest.raises(AssertionError):
            assert_close(torch.cat((query, key), dim=1), expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("inner", [1, 80, 1537])
def test_silu_and_mul_cpu_is_silu_times_up(rows, inner):
    """Would catch gate and up exchanged, and the wrong branch for one of the signs."""
    gate_up = 5 * torch.randn(rows, 2 * inner)
    out = torch.full((rows, inner), math.nan)
    silu_and_mul_cpu(gate_up.numpy(), out.numpy())
    expected = silu_and_mul_reference(gate_up)
    assert_close(out, expected)
    assert_close(out, silu_and_mul_reference(gate_up.double()))
    if rows:
        with pytest.raises(AssertionError):  # negative control: exchanged
            assert_close(silu_and_mul_reference(gate_up.roll(inner, dims=-1)), expected)


def test_gates_far_from_zero_do_not_overflow():
    """Would catch e^-g of a large negative gate: infinity, and infinity times 0 is NaN."""
    gate_up = torch.tensor([[-1e30, -1e4, -90.0, 0.0, 90.0, 1e4, *[1.0] * 6]])
    out = torch.full((1, 6), math.nan)
    silu_and_mul_cpu(gate_up.numpy(), out.numpy())
    assert_close(out[:, 1:], torch.tensor([[0.0, 0.0, 0.0, 90.0, 1e4]]))
    assert abs(out[0, 0]) < 1  # 2^-126 of -1e30, and not -1e30


# -- the layers: one column of the table like the other -----------------------------------------------


@pytest.fixture(params=["numba", "triton"])
def kinds(request):
    return layer_kinds(build_of(request.param))


def test_any_other_backend_takes_pytorchs_operators():
    """Would catch a student's backend on a device for which the kernels are not made."""
    assert layer_kinds(build_of("mine")) == LayerKinds(RMSNorm, RotaryEmbedding, silu_and_mul)


@pytest.mark.parametrize("rows", ROWS[1:])
def test_norms_agree(kinds, rows):
    """Would catch hidden and update exchanged where the sum is what both return."""
    plain, fused = RMSNorm(build_of("torch")), kinds.norm(build_of("torch"))
    weight = torch.randn(48)
    plain.weight.copy_(weight)
    fused.weight.copy_(weight)
    hidden, update = torch.randn(rows, 48), torch.randn(rows, 48)
    before = hidden.clone(), update.clone()
    for actual, expected in zip(fused(hidden, update), plain(hidden, update), strict=True):
        assert_close(actual, expected)
    assert torch.equal(hidden, before[0]) and torch.equal(update, before[1])


@pytest.mark.parametrize("rows", ROWS[1:])
def test_rotations_agree_and_leave_the_values_alone(kinds, rows):
    """Would catch a table of another order, and a view whose rows are not where they are taken to be."""
    plain, fused = RotaryEmbedding(build_of("torch")), kinds.rotary_embedding(build_of("torch"))
    packed = torch.randn(rows, (6 + 2 + 2) * 16).view(rows, -1, 16)
    expected = packed.clone()
    positions = torch.randint(0, 300, (rows,))
    query_key, value = packed.split((8, 2), dim=1)
    rotated = fused.rotate(query_key, *fused.look_up(positions, torch.float32))
    assert torch.equal(value, expected[:, 8:])
    expected = plain.rotate(expected[:, :8], *plain.look_up(positions, torch.float32))
    assert_close(rotated, expected)
    with pytest.raises(AssertionError):  # negative control: the next position
        assert_close(
            plain.rotate(expected, *plain.look_up(torch.ones_like(positions), torch.float32)), expected
        )


@pytest.mark.parametrize("rows", ROWS[1:])
def test_activations_agree(kinds, rows):
    """Would catch the activation of another column's shape."""
    gate_up = 5 * torch.randn(rows, 160)
    before = gate_up.clone()
    assert_close(kinds.silu_and_mul(gate_up), silu_and_mul(gate_up))
    assert torch.equal(gate_up, before)

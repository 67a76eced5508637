"""rms_norm, rotary_embedding and silu_and_mul against float64 and against Hugging Face's Llama."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from minivllm.kernels.rms_norm import rms_norm, rms_norm_reference
from minivllm.kernels.rotary_embedding import rotary_embedding, rotary_embedding_reference
from minivllm.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference
from tests.kernels.attention_case import DTYPES

# A kernel that computes inf - inf or 0 / 0 in a row it then masks is a warning in the interpreter.
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

# Relative to the size of each number: two roundings, of the row and of the product (bfloat16: truncations).
RELATIVE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """The one assertion on values: shape, dtype and error relative to max(|expected|, 1) (NaN fails too)."""
    assert actual.dtype == dtype and actual.shape == expected.shape
    error = (actual.double().cpu() - expected).abs() / expected.abs().clamp(min=1.0)
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= RELATIVE[dtype], f"largest error {worst:.3g}, tolerance {RELATIVE[dtype]:.3g}"


def assert_rounds_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The values are close, and in float16 fewer than 1% of them differ; `expected` is rounded as in Hugging Face.

    With a rounding left out about a quarter of them differ, and with a root or an exponential whose last bit is
    another one, as a GPU's approximate instructions give, a few in ten thousand. In float32 most elements differ by that last
    bit, so there the bound on the error has to do.
    """
    assert_close(actual, expected.double().cpu(), expected.dtype)
    different = (actual != expected).float().mean().item()
    assert different < 0.01 or expected.dtype is not torch.float16, f"{different:.1%} of the elements differ"


def rms_norm64(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """RMSNorm in float64."""
    x = x.double().cpu()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double().cpu()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden", [576, 64, 1000])
def test_rms_norm_matches_float64(hidden, dtype, device):
    """Catches a mean over the padded row: 576 is padded to 1024, which would change the norm by a quarter."""
    x, weight = torch.randn(3, hidden, device=device).to(dtype), torch.randn(hidden, device=device).to(dtype)
    before = x.clone()
    assert_close(rms_norm(x, weight, 1e-5), rms_norm64(x, weight), dtype)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_residual_returns_the_sum_and_its_norm(dtype, device):
    """Catches the norm of x instead of x + residual, and a sum that is not the next layer's residual."""
    x, residual = torch.randn(2, 3, 576, device=device).to(dtype)
    weight = torch.randn(576, device=device).to(dtype)
    before = x.clone(), residual.clone()
    normed, total = rms_norm(x, weight, 1e-5, residual)
    assert_close(total, x.double().cpu() + residual.double().cpu(), dtype)
    assert_close(normed, rms_norm64(total, weight), dtype)
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_norm_tolerance_rejects(dtype):
    """Negative control: zeros, a missing weight, a mean over 1024 instead of 576, no residual."""
    x, residual = torch.randn(2, 3, 576).to(dtype)
    weight = torch.randn(576).to(dtype)
    right = rms_norm64(x, weight)
    wrong_mean = right * math.sqrt(1024 / 576)
    for wrong in (0 * right, rms_norm64(x, torch.ones(576)), wrong_mean, rms_norm64(x + residual, weight)):
        with pytest.raises(AssertionError, match="largest error"):
            assert_close(wrong.to(dtype), right, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rms_norm_is_hugging_faces_to_a_rounding(dtype, device):
    """Catches another order of roundings, which flips a greedy token now and then."""
    module = modeling_llama.LlamaRMSNorm(576, eps=1e-5).to(device, dtype)
    module.weight.data = torch.randn(576, device=device).to(dtype)
    x = torch.randn(4, 576, device=device).to(dtype)
    with torch.no_grad():
        expected = module(x)
        actual = rms_norm(x, module.weight, 1e-5)
        assert torch.equal(rms_norm_reference(x, module.weight, 1e-5), expected)
    assert_rounds_alike(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_another_last_bit_passes_and_a_missing_rounding_does_not(dtype):
    """Would catch a test that fails on a right GPU, whose square root is approximate, or passes any rounding."""
    x, weight = torch.randn(4, 576).to(dtype), torch.randn(576).to(dtype)
    expected = rms_norm_reference(x, weight, 1e-5)
    inverse_rms = (x.float().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * (1 + 2**-22)  # two bits off
    assert_rounds_alike((x.float() * inverse_rms).to(dtype) * weight, expected)
    if dtype is torch.float32:
        assert (expected != (x * inverse_rms) * weight).float().mean() > 0.5
        return
    with pytest.raises(AssertionError, match="of the elements differ"):
        assert_rounds_alike((x.float() * inverse_rms * weight.float()).to(dtype), expected)


def test_squares_beyond_float16_do_not_overflow(device):
    """Catches squares summed in float16: 300^2 is more than 65504."""
    x = 300 * torch.randn(2, 576, device=device).half()
    weight = torch.ones(576, device=device).half()
    assert_close(rms_norm(x, weight, 1e-5), rms_norm64(x, weight), torch.float16)


def test_a_row_of_zeros_gives_zeros_and_no_rows_give_no_rows(device):
    """Catches a missing eps (0 / 0), and a launch with an empty grid."""
    weight = torch.ones(576, device=device)
    assert torch.all(rms_norm(torch.zeros(1, 576, device=device), weight, 1e-5) == 0)
    empty = torch.zeros(0, 576, device=device)
    normed, total = rms_norm(empty, weight, 1e-5, empty)
    assert normed.shape == total.shape == rms_norm(empty, weight, 1e-5).shape == (0, 576)


def test_rms_norm_takes_strided_rows_and_more_axes(device):
    """Catches a row stride that is assumed to be H."""
    wide = torch.full((2, 3, 100), math.nan, device=device)
    wide[..., :24] = torch.randn(2, 3, 24, device=device)
    weight = torch.randn(24, device=device)
    x = wide[..., :24]
    assert_close(rms_norm(x, weight, 1e-5), rms_norm64(x, weight), torch.float32)
    normed, total = rms_norm(x[0], weight, 1e-5, x[1])
    assert_close(total, (x[0] + x[1]).double().cpu(), torch.float32)
    assert_close(normed, rms_norm64(total, weight), torch.float32)


def make_cos_sin(max_position: int, rotary_dim: int) -> torch.Tensor:
    """(max_position, rotary_dim) = [cos | sin], base 10000."""
    theta = 10000.0 ** (-torch.arange(0, rotary_dim, 2).double() / rotary_dim)
    angle = torch.arange(max_position).double()[:, None] * theta
    return torch.cat([angle.cos(), angle.sin()], -1).float()


def rotate64(positions: torch.Tensor, x: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """RoPE in float64 as a product of complex numbers: element i + half is the imaginary part of i."""
    half = rotary_dim // 2
    x = x.double().cpu()
    pairs = torch.complex(x[..., :half].contiguous(), x[..., half:rotary_dim].contiguous())
    cos_sin = make_cos_sin(512, rotary_dim).double()[positions.cpu().long()]
    turned = pairs * torch.complex(cos_sin[:, :half].contiguous(), cos_sin[:, half:].contiguous())[:, None]
    return torch.cat([turned.real, turned.imag, x[..., rotary_dim:]], -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim, rotary_dim", [(64, 64), (80, 80), (64, 32), (96, 24)])
def test_rotary_embedding_matches_complex_multiplication(head_dim, rotary_dim, dtype, device):
    """Catches a wrong sign or layout, heads or lanes rotated that should not be, and a wrong position."""
    positions = torch.tensor([0, 511, 3, 3, 100], device=device)
    query = torch.randn(5, 9, head_dim, device=device).to(dtype)
    key = torch.randn(5, 3, head_dim, device=device).to(dtype)
    expected = [rotate64(positions, x, rotary_dim) for x in (query, key)]
    cos_sin = make_cos_sin(512, rotary_dim).to(device)
    twins = rotary_embedding_reference(positions, query, key, cos_sin)
    returned = rotary_embedding(positions, query, key, cos_sin)
    assert returned[0] is query and returned[1] is key  # in place
    for x, twin, right in zip((query, key), twins, expected, strict=True):
        assert_close(x, right, dtype)
        assert_close(twin, right, dtype)
    assert torch.equal(query[0, :, rotary_dim:], twins[0][0, :, rotary_dim:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_rotary_tolerance_rejects(dtype):
    """Negative control: not rotated, turned the other way, interleaved pairs, one position too far."""
    positions = torch.tensor([5, 100, 3])
    x = torch.randn(3, 2, 64)
    right = rotate64(positions, x, 64)
    interleaved = x.unflatten(-1, (32, 2)).transpose(-1, -2).flatten(-2)
    interleaved = rotate64(positions, interleaved, 64).unflatten(-1, (2, 32)).transpose(-1, -2).flatten(-2)
    other_way = rotary_embedding_reference(
        positions, x, x, make_cos_sin(512, 64) * torch.tensor([1.0] * 32 + [-1.0] * 32)
    )[0]
    for wrong in (x, other_way, interleaved, rotate64(positions + 1, x, 64)):
        with pytest.raises(AssertionError, match="largest error"):
            assert_close(wrong.to(dtype), right, dtype)


def test_rotary_embedding_is_hugging_faces(device):
    """Catches another layout than that of the weights on the hub."""
    config = LlamaConfig(
        hidden_size=576, num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=512
    )
    module = modeling_llama.LlamaRotaryEmbedding(config).to(device)
    positions = torch.tensor([0, 511, 7], device=device)
    cos_sin = make_cos_sin(512, 64).to(device)
    # A wrong layout is wrong by the size of the numbers. Their angles are float32, which at position 511 is 3e-5
    # off, times the numbers: one draw in eight is more than 5e-5 off. (Drawn on the CPU: the same on every chip.)
    for _ in range(50):
        query, key = torch.randn(3, 9, 64).to(device), torch.randn(3, 3, 64).to(device)
        cos, sin = module(query, positions[None])
        expected = modeling_llama.apply_rotary_pos_emb(
            query.transpose(0, 1)[None], key.transpose(0, 1)[None], cos, sin
        )
        actual = rotary_embedding(positions, query, key, cos_sin)
        for ours, theirs in zip(actual, expected, strict=True):
            assert (ours - theirs[0].transpose(0, 1)).abs().max() < 2e-4


def test_rotary_embedding_writes_only_its_slice_of_fused_qkv(device):
    """Catches strides that are assumed: the values beside query and key, and NaN, must stay."""
    qkv = torch.randn(3, 9 + 3 + 3, 80, device=device)
    qkv[:, 12:] = math.nan
    before = qkv.clone()
    positions = torch.tensor([1, 2, 500], dtype=torch.int32, device=device)
    rotary_embedding(positions, qkv[:, :9], qkv[:, 9:12], make_cos_sin(512, 80).to(device))
    assert_close(qkv[:, :12], rotate64(positions, before[:, :12], 80), torch.float32)
    assert qkv[:, 12:].isnan().all()


def test_rotary_embedding_of_no_tokens(device):
    """Catches a launch with an empty grid."""
    query, key = torch.zeros(0, 4, 64, device=device), torch.zeros(0, 2, 64, device=device)
    positions = torch.zeros(0, dtype=torch.int64, device=device)
    assert rotary_embedding(positions, query, key, make_cos_sin(8, 64).to(device))[0].shape == (0, 4, 64)


def silu_and_mul64(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up in float64."""
    gate, up = x.double().cpu().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1536, 100, 5000])
def test_silu_and_mul_matches_float64(size, dtype, device):
    """Catches a tile that ends in the middle of a row: 5000 is more than one tile, 1536 less."""
    x = torch.randn(3, 2 * size, device=device).to(dtype)
    assert_close(silu_and_mul(x), silu_and_mul64(x), dtype)
    assert_close(silu_and_mul_reference(x), silu_and_mul64(x), dtype)


def test_silu_and_mul_rounds_as_hugging_face_does(device):
    """Would catch silu that is not rounded to float16 before the product, as one of the mutants."""
    x = torch.randn(3, 2 * 1536).to(device, torch.float16)
    assert_rounds_alike(silu_and_mul(x), silu_and_mul_reference(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_activation_tolerance_rejects(dtype):
    """Negative control: zeros, halves swapped, plain sigmoid, no activation."""
    x = torch.randn(3, 200).to(dtype)
    gate, up = x.double().chunk(2, -1)
    right = silu_and_mul64(x)
    for wrong in (0 * right, silu_and_mul64(torch.cat([up, gate], -1)), gate.sigmoid() * up, gate * up):
        with pytest.raises(AssertionError, match="largest error"):
            assert_close(wrong.to(dtype), right, dtype)


def test_silu_of_ten_thousand_does_not_overflow(device):
    """Catches exp(10000): the gate's value must come through, and its negative give 0, not NaN."""
    x = torch.tensor([[1e4, -1e4, 100.0, -100.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]], device=device)
    assert_close(silu_and_mul(x), silu_and_mul64(x), torch.float32)
    assert silu_and_mul(x)[0, 1] == 0


def test_silu_and_mul_takes_strided_rows_and_no_rows(device):
    """Catches a row stride that is assumed to be 2 * I, and a launch with an empty grid."""
    wide = torch.full((3, 500), math.nan, device=device)
    wide[:, :200] = torch.randn(3, 200, device=device)
    assert_close(silu_and_mul(wide[:, :200]), silu_and_mul64(wide[:, :200]), torch.float32)
    assert silu_and_mul(wide[:0, :200]).shape == (0, 100)

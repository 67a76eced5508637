"""reshape_and_cache: the right bytes in the right place, and nothing anywhere else.

Each test compares the *whole* cache, bit by bit, with a clone that was written one token at a time: a write
into a neighbour's slot is the bug that matters most, and an assertion on the written slots cannot see it.
"""

import pytest
import torch

from minivllm.kernels.reshape_and_cache import reshape_and_cache, reshape_and_cache_reference
from tests.kernels.attention_case import DTYPES


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers, so that NaN equals NaN and -0 differs from 0."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def make_caches(B: int, S: int, heads: int, D: int, dtype: torch.dtype, device: torch.device) -> list:
    """K and V caches of random numbers, one slot in three NaN."""
    caches = [torch.randn(B, S, heads, D) for _ in range(2)]
    for cache in caches:
        cache[torch.rand(B, S) < 0.3] = torch.nan
    return [cache.to(device, dtype) for cache in caches]


def assert_same_caches(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """The one assertion: every bit of both caches."""
    for name, a, b in zip(("key_cache", "value_cache"), actual, expected, strict=True):
        different = (bits(a) != bits(b)).flatten(2).any(2).nonzero().tolist()
        assert not different, f"{name} differs in (block, offset) {different[:5]}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 64), (5, 80), (1, 16), (8, 128)], ids=str)
def test_tokens_land_in_their_slots_and_nowhere_else(shape, dtype, device):
    """Catches an unmasked lane when Hkv * D is no power of two (192, 400), and a write for slot -1."""
    caches = make_caches(7, 16, *shape, dtype, device)
    expected = [cache.clone() for cache in caches]
    key, value = torch.randn(2, 9, *shape, device=device).to(dtype)
    slots = torch.tensor([7 * 16 - 1, -1, 0, 33, 31, -1, 32, 90, -1], device=device)  # last, first, any order
    reshape_and_cache(key, value, *caches, slots)
    reshape_and_cache_reference(key, value, *expected, slots)
    assert_same_caches(caches, expected)
    assert torch.equal(caches[0][6, 15], key[0]) and torch.equal(caches[1][0, 0], value[2])


def test_the_comparison_rejects_one_wrong_element():
    """Negative control: no write, a swapped K and V, a shifted slot and one stray element all fail."""
    caches = make_caches(4, 4, 2, 16, torch.float32, torch.device("cpu"))
    key, value = torch.randn(2, 3, 2, 16)
    slots = torch.tensor([5, -1, 9])
    expected = [cache.clone() for cache in caches]
    reshape_and_cache_reference(key, value, *expected, slots)

    swapped, shifted, unskipped, stray = ([cache.clone() for cache in caches] for _ in range(4))
    reshape_and_cache_reference(value, key, *swapped, slots)
    reshape_and_cache_reference(key, value, *shifted, slots + 1)
    reshape_and_cache_reference(key, value, *unskipped, slots.where(slots >= 0, 15))  # -1 as the last slot
    reshape_and_cache_reference(key, value, *stray, slots)
    stray[1][3, 3, 1, 15] += 1
    for wrong in (caches, swapped, shifted, unskipped, stray):
        with pytest.raises(AssertionError, match="differs"):
            assert_same_caches(wrong, expected)


def test_key_and_value_may_be_slices_of_fused_qkv_and_the_cache_a_view(device):
    """Catches a contiguous stride that is assumed: qkv slices in, one layer of (L, 2, B, S, Hkv, D) out."""
    layers = torch.zeros(3, 2, 5, 4, 3, 24, device=device)
    expected = layers.clone()
    qkv = torch.randn(6, 9 + 3 + 3, 24, device=device)
    key, value = qkv[:, 9:12], qkv[:, 12:]
    slots = torch.tensor([3, 19, -1, 0, 8, 4], device=device)
    reshape_and_cache(key, value, layers[1, 0], layers[1, 1], slots)
    reshape_and_cache_reference(key, value, expected[1, 0], expected[1, 1], slots)
    assert torch.equal(layers, expected)
    assert layers[1].abs().sum() > 0


def test_key_and_value_caches_may_have_different_strides(device):
    """Catches the key cache's strides used for the value cache."""
    caches = [torch.zeros(5, 4, 3, 24, device=device), torch.zeros(5, 4, 3, 64, device=device)[..., :24]]
    expected = [cache.clone() for cache in caches]
    key, value = torch.randn(2, 4, 3, 24, device=device)
    slots = torch.tensor([3, 19, 0, 8], dtype=torch.int32, device=device)
    reshape_and_cache(key, value, *caches, slots)
    reshape_and_cache_reference(key, value, *expected, slots)
    assert torch.equal(caches[0], expected[0]) and torch.equal(caches[1], expected[1])


def test_no_tokens_and_only_padding_write_nothing(device):
    """Catches a launch with an empty grid, and -1 taken as an index from the end."""
    caches = make_caches(3, 4, 2, 16, torch.float32, device)
    expected = [cache.clone() for cache in caches]
    key, value = torch.randn(2, 3, 2, 16, device=device)
    reshape_and_cache(key[:0], value[:0], *caches, torch.zeros(0, dtype=torch.int64, device=device))
    reshape_and_cache(key, value, *caches, torch.full((3,), -1, device=device))
    assert_same_caches(caches, expected)

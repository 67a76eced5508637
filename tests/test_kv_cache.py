"""The physical KV cache: after a write, copy or swap the *whole* cache is compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minivllm.kernels.reshape_and_cache import reshape_and_cache_reference
from minivllm.kv_cache import KVCache
from tests.helpers_tensor import model_config

CONFIG = model_config(heads=6, kv_heads=3, head_dim=64, num_hidden_layers=2)  # a row of 192: no power of two
NUM_BLOCKS, BLOCK_SIZE, NUM_CPU_BLOCKS = 9, 4, 5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_cache(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache in which every element is different noise, so that a stray write cannot hide."""
    kv_cache = KVCache(CONFIG, NUM_BLOCKS, BLOCK_SIZE, dtype, "cpu", NUM_CPU_BLOCKS)
    for tensor in (*kv_cache.key, *kv_cache.value, *kv_cache.cpu_key, *kv_cache.cpu_value):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return kv_cache


def snapshot(kv_cache: KVCache) -> dict[str, list[Tensor]]:
    """A copy of everything the cache holds, by name."""
    names = ("key", "value", "cpu_key", "cpu_value")
    return {name: [tensor.clone() for tensor in getattr(kv_cache, name)] for name in names}


def assert_holds(kv_cache: KVCache, expected: dict[str, list[Tensor]]) -> None:
    """Every element of every layer, on the device and in swap space, bit for bit."""
    for name, layers in expected.items():
        for layer, tensor in enumerate(layers):
            torch.testing.assert_close(getattr(kv_cache, name)[layer], tensor, rtol=0, atol=0)


def random_tokens(generator: torch.Generator, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V (T, Hkv, D) as the model has them: slices of one packed QKV tensor, so not contiguous."""
    packed = torch.randn(count, 12, 64, generator=generator).to(dtype)
    return packed[:, 6:9], packed[:, 9:]


def test_a_new_cache_is_all_zeros_in_the_documented_shape():
    """Catches torch.empty: a NaN in an unused slot gets a weight of 0, and 0 * NaN is NaN."""
    kv_cache = KVCache(CONFIG, NUM_BLOCKS, BLOCK_SIZE, torch.float32, "cpu", NUM_CPU_BLOCKS)
    for blocks, tensors in (
        (NUM_BLOCKS, kv_cache.key + kv_cache.value),
        (NUM_CPU_BLOCKS, kv_cache.cpu_key + kv_cache.cpu_value),
    ):
        assert len(tensors) == 2 * CONFIG.num_hidden_layers
        for tensor in tensors:
            assert tensor.shape == (blocks, BLOCK_SIZE, 3, 64)
            assert tensor.is_contiguous()  # what the kernels are promised
            assert tensor.count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_nbytes_counts_the_device_blocks_and_nothing_else(dtype: torch.dtype):
    """Catches a memory report that forgets V, a layer or the element size, or adds the swap space."""
    kv_cache = KVCache(CONFIG, NUM_BLOCKS, BLOCK_SIZE, dtype, "cpu", NUM_CPU_BLOCKS)
    expected = NUM_BLOCKS * BLOCK_SIZE * CONFIG.kv_bytes_per_token(dtype.itemsize)
    assert kv_cache.nbytes == expected
    assert sum(tensor.nbytes for tensor in kv_cache.key + kv_cache.value) == expected


def test_the_example_sequence_lands_in_blocks_7_and_2(generator: torch.Generator):
    """The example of the module docstring: 6 tokens, block table [7, 2], slots 28..31, 8, 9."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    key, value = random_tokens(generator, 6, torch.float32)
    kv_cache.write(1, key, value, torch.tensor([28, 29, 30, 31, 8, 9]))
    expected["key"][1][7], expected["key"][1][2, :2] = key[:4], key[4:]
    expected["value"][1][7], expected["value"][1][2, :2] = value[:4], value[4:]
    assert_holds(kv_cache, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 5, NUM_BLOCKS * BLOCK_SIZE])
def test_write_equals_the_token_loop_on_the_whole_cache(
    count: int, dtype: torch.dtype, generator: torch.Generator
):
    """Catches a write that spills into a neighbour slot, another layer, or from K into V."""
    kv_cache = random_cache(generator, dtype)
    expected = snapshot(kv_cache)
    key, value = random_tokens(generator, count, dtype)
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=generator)[:count]
    reshape_and_cache_reference(key, value, expected["key"][0], expected["value"][0], slots)
    kv_cache.write(0, key, value, slots)
    assert_holds(kv_cache, expected)


@pytest.mark.parametrize("bug", ["nothing written", "slot + 1", "K and V exchanged", "wrong layer"])
def test_the_comparison_rejects_a_wrong_write(bug: str, generator: torch.Generator):
    """Negative control of the test above: each known bug fails the same assertion."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    key, value = random_tokens(generator, 5, torch.float32)
    slots = torch.tensor([3, 17, 4, 30, 9])
    reshape_and_cache_reference(key, value, expected["key"][0], expected["value"][0], slots)
    if bug == "slot + 1":
        kv_cache.write(0, key, value, slots + 1)
    elif bug == "K and V exchanged":
        kv_cache.write(0, value, key, slots)
    elif bug == "wrong layer":
        kv_cache.write(1, key, value, slots)
    with pytest.raises(AssertionError):
        assert_holds(kv_cache, expected)


def test_the_reference_skips_padding_slots(generator: torch.Generator):
    """Catches an oracle that writes padding to the last slot, as `slots[-1] = key` would."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    key, value = random_tokens(generator, 3, torch.float32)
    reshape_and_cache_reference(key, value, kv_cache.key[0], kv_cache.value[0], torch.tensor([-1, 6, -1]))
    expected["key"][0][1, 2], expected["value"][0][1, 2] = key[1], value[1]
    assert_holds(kv_cache, expected)


@pytest.mark.parametrize("slot", [-1, NUM_BLOCKS * BLOCK_SIZE])
def test_write_refuses_a_slot_that_does_not_exist(slot: int, generator: torch.Generator):
    """Catches a write that lets -1 count from the end: it would overwrite some sequence's last token."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    key, value = random_tokens(generator, 1, torch.float32)
    with pytest.raises(IndexError):
        kv_cache.write(0, key, value, torch.tensor([slot]))
    assert_holds(kv_cache, expected)


def test_write_refuses_another_number_of_tokens_or_heads(generator: torch.Generator):
    """Catches broadcasting: one token's K silently written to every slot of the step."""
    kv_cache = random_cache(generator)
    key, value = random_tokens(generator, 4, torch.float32)
    with pytest.raises(AssertionError):
        kv_cache.write(0, key[:1], value[:1], torch.tensor([1, 2, 3, 4]))
    with pytest.raises(AssertionError):
        kv_cache.write(0, key[:, :1], value[:, :1], torch.tensor([1, 2, 3, 4]))


def test_copy_blocks_copies_k_and_v_of_every_layer_and_touches_nothing_else(generator: torch.Generator):
    """Catches a copy-on-write that forgets V or all layers but the first: the fork's text goes wrong."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    for name in ("key", "value"):
        for tensor in expected[name]:
            tensor[5], tensor[0] = tensor[7].clone(), tensor[2].clone()
    kv_cache.copy_blocks([(7, 5), (2, 0)])
    assert_holds(kv_cache, expected)
    expected["value"][1][5, 0, 0, 0] += 1  # negative control: one element of one layer
    with pytest.raises(AssertionError):
        assert_holds(kv_cache, expected)


def test_copy_blocks_reads_all_sources_before_it_writes(generator: torch.Generator):
    """Catches copying pair by pair: block 3 would receive what block 2 has just received."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    for name in ("key", "value"):
        for tensor in expected[name]:
            tensor[2], tensor[3] = tensor[1].clone(), tensor[2].clone()
    kv_cache.copy_blocks([(1, 2), (2, 3)])
    assert_holds(kv_cache, expected)


def test_swapping_out_and_in_brings_the_contents_back_in_other_blocks(generator: torch.Generator):
    """Catches exchanged source and destination, and a resumed group that reads its old block ids."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    original = snapshot(kv_cache)
    kv_cache.swap_out([(8, 0), (1, 4)])
    for name in ("key", "value"):
        for layer in range(CONFIG.num_hidden_layers):
            expected[f"cpu_{name}"][layer][0] = original[name][layer][8]
            expected[f"cpu_{name}"][layer][4] = original[name][layer][1]
    assert_holds(kv_cache, expected)
    kv_cache.swap_in([(4, 6), (0, 3)])
    for name in ("key", "value"):
        for layer in range(CONFIG.num_hidden_layers):
            expected[name][layer][6] = original[name][layer][1]
            expected[name][layer][3] = original[name][layer][8]
    assert_holds(kv_cache, expected)


@pytest.mark.parametrize(
    ("method", "pairs"),
    [
        ("copy_blocks", [(0, 1), (2, NUM_BLOCKS)]),
        ("copy_blocks", [(0, 1), (-1, 2)]),
        ("copy_blocks", [(0, 1), (2, 1)]),
        ("swap_out", [(0, 1), (2, NUM_CPU_BLOCKS)]),
        ("swap_in", [(0, 1), (NUM_CPU_BLOCKS, 2)]),
    ],
)
def test_bad_block_pairs_are_refused_before_anything_moves(
    method: str, pairs: list[tuple[int, int]], generator: torch.Generator
):
    """Catches a negative id that counts from the end, and a half-done list of copies."""
    kv_cache = random_cache(generator)
    expected = snapshot(kv_cache)
    with pytest.raises(ValueError, match="block"):
        getattr(kv_cache, method)(pairs)
    assert_holds(kv_cache, expected)


@pytest.mark.parametrize("method", ["copy_blocks", "swap_out", "swap_in"])
def test_an_empty_list_of_pairs_is_no_work_even_without_swap_space(method: str):
    """Catches a crash in the common step: nothing to copy, no swap space configured."""
    kv_cache = KVCache(CONFIG, NUM_BLOCKS, BLOCK_SIZE, torch.float32, "cpu")
    expected = snapshot(kv_cache)
    getattr(kv_cache, method)([])
    assert_holds(kv_cache, expected)


@pytest.mark.parametrize("sizes", [(0, 4, 0), (4, 0, 0), (4, 4, -1)])
def test_a_cache_of_no_blocks_is_refused(sizes: tuple[int, int, int]):
    """Catches a pool computed from a memory budget that was too small."""
    num_blocks, block_size, num_cpu_blocks = sizes
    with pytest.raises(ValueError, match="must be at least"):
        KVCache(CONFIG, num_blocks, block_size, torch.float32, "cpu", num_cpu_blocks)

"""Paged attention against float64 SDPA on plain contiguous tensors, with every unused slot poisoned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minivllm.attention import AttentionBackend, AttentionMetadata, paged_attention_reference
from minivllm.backends import attention_kernels
from minivllm.backends.attention_kernels import NumbaAttention, TritonAttention, make_attention_backend
from minivllm.backends.attention_torch import TorchAttention, TorchPlan, causal_mask
from minivllm.config import ModelConfig
from minivllm.kernels.paged_attention_cpu import deal_out
from minivllm.kv_cache import KVCache
from tests.helpers_tensor import make_metadata, model_config, poison_

S = 4  # block size
LAYER = 1

# (query_len, seq_len) of each sequence. Decode is (1, n), fresh prefill (n, n), chunked prefill (q, n > q).
BATCHES = {
    "decode at block boundaries": [(1, 1), (1, S - 1), (1, S), (1, S + 1), (1, 2 * S), (1, 2 * S + 1)],
    "decode of one sequence": [(1, 9)],
    "decode of very different lengths": [(1, 70), (1, 3), (1, 64), (1, 5), (1, 1), (1, 33)],
    "decode of equal lengths": [(1, 7), (1, 7), (1, 7)],
    "fresh prefill": [(1, 1), (S, S), (S + 1, S + 1), (11, 11)],
    "chunked prefill": [(2, 3), (3, S), (S, 2 * S), (5, 37), (S + 1, 2 * S + 1)],
    "everything at once": [(1, 6), (9, 9), (3, 20), (1, 1), (1, 41), (2, 2), (7, 8), (1, 40)],
}
# Tolerance by dtype: float32 rounding is about 1e-6 here; half precision rounds the result itself.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Batch:
    """One step's inputs, and per sequence the contiguous K and V the paged cache must amount to."""

    query: Tensor  # (T, Hq, D)
    key: Tensor  # (T, Hkv, D): the new tokens
    value: Tensor
    kv_cache: KVCache  # past tokens written, all other slots poisoned
    metadata: AttentionMetadata
    past_and_new: list[tuple[Tensor, Tensor]]  # R x (n, Hkv, D)
    scale: float


def make_batch(
    lengths: list[tuple[int, int]],
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    share_prefix: bool = False,
) -> Batch:
    """Random inputs in random physical blocks; with `share_prefix` all sequences share their first block."""
    generator = torch.Generator().manual_seed(seed)
    needed = [math.ceil(seq_len / S) for _, seq_len in lengths]
    kv_cache = KVCache(config, sum(needed) + 2, S, dtype, "cpu")
    for tensor in kv_cache.key + kv_cache.value:
        poison_(tensor, generator)
    free = torch.randperm(kv_cache.num_blocks, generator=generator).tolist()
    tables = [[free.pop() for _ in range(count)] for count in needed]
    shape = (config.num_key_value_heads, config.head_dim)
    contents = [
        (torch.randn(n, *shape, generator=generator), torch.randn(n, *shape, generator=generator))
        for _, n in lengths
    ]
    contents = [(key.to(dtype), value.to(dtype)) for key, value in contents]
    if share_prefix:
        for table, (key, value) in zip(tables, contents, strict=True):
            table[0] = tables[0][0]
            key[:S], value[:S] = contents[0][0][:S], contents[0][1][:S]
    for (query_len, seq_len), table, (key, value) in zip(lengths, tables, contents, strict=True):
        for position in range(seq_len - query_len):
            kv_cache.key[LAYER][table[position // S], position % S] = key[position]
            kv_cache.value[LAYER][table[position // S], position % S] = value[position]
    new = [(key[n - q :], value[n - q :]) for (q, n), (key, value) in zip(lengths, contents, strict=True)]
    # As in the model: query, key and value are slices of one packed tensor, so none is contiguous.
    heads = config.num_attention_heads
    packed = torch.randn(
        sum(q for q, _ in lengths), heads + 2 * shape[0], config.head_dim, generator=generator
    )
    packed = packed.to(dtype)
    packed[:, heads : heads + shape[0]] = torch.cat([key for key, _ in new])
    packed[:, heads + shape[0] :] = torch.cat([value for _, value in new])
    query, key, value = packed.split((heads, *[shape[0]] * 2), dim=1)
    query_lens, seq_lens = [q for q, _ in lengths], [n for _, n in lengths]
    metadata = make_metadata(tables, seq_lens, query_lens, S)
    return Batch(query, key, value, kv_cache, metadata, contents, config.head_dim**-0.5)


def dense_attention(batch: Batch, bug: str | None = None) -> Tensor:
    """Float64 SDPA, sequence by sequence, on the contiguous K and V. `bug` makes it wrong on purpose."""
    outputs = []
    starts = batch.metadata.query_start_loc.tolist()
    for row, (key, value) in enumerate(batch.past_and_new):
        query = batch.query[starts[row] : starts[row + 1]].double().transpose(0, 1)  # (Hq, q, D)
        group = query.shape[0] // key.shape[1]
        if bug == "repeat instead of repeat_interleave":
            key, value = key.repeat(1, group, 1), value.repeat(1, group, 1)
        else:
            key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
        key, value = key.double().transpose(0, 1), value.double().transpose(0, 1)  # (Hq, n, D)
        diagonal = key.shape[1] - query.shape[1]
        if bug == "mask off by one":
            diagonal = max(diagonal - 1, 0)
        elif bug == "mask aligned at the top left":
            diagonal = 0
        mask = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool).tril(diagonal)
        scale = 1.0 if bug == "no scale" else batch.scale
        outputs.append(scaled_dot_product_attention(query, key, value, mask, scale=scale).transpose(0, 1))
    output = torch.cat(outputs)
    return torch.zeros_like(output) if bug == "zeros" else output


def run_reference(batch: Batch, config: ModelConfig) -> Tensor:
    batch.kv_cache.write(LAYER, batch.key, batch.value, batch.metadata.slot_mapping)
    key, value = batch.kv_cache.key[LAYER], batch.kv_cache.value[LAYER]
    return paged_attention_reference(batch.query, key, value, batch.metadata, batch.scale)


def run_backend(backend: AttentionBackend, batch: Batch) -> Tensor:
    metadata = backend.prepare(batch.metadata)
    return backend.forward(batch.query, batch.key, batch.value, batch.kv_cache, LAYER, metadata, batch.scale)


def run_torch(batch: Batch, config: ModelConfig) -> Tensor:
    """Pieces of 4 rows, so that short prompts have several."""
    return run_backend(TorchAttention(config, S, batch.query.dtype, "cpu", piece=4), batch)


def run_numba(batch: Batch, config: ModelConfig) -> Tensor:
    return run_backend(NumbaAttention(config, S, torch.float32, "cpu"), batch)


def run_numba_prefill(batch: Batch, config: ModelConfig) -> Tensor:
    """Everything goes through the kernel for long prompts."""
    with patch.object(attention_kernels, "FEW_KEYS", 0), patch.object(attention_kernels, "FEW_QUERIES", 0):
        return run_numba(batch, config)


ANY_DTYPE = {"reference": run_reference, "torch": run_torch}
RUNNERS = {**ANY_DTYPE, "numba": run_numba, "numba, prefill kernel alone": run_numba_prefill}
Runner = Callable[[Batch, ModelConfig], Tensor]


def assert_matches(actual: Tensor, expected: Tensor) -> None:
    """The one assertion of this module; the negative controls below must not pass it."""
    assert actual.shape == expected.shape
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_paged_attention_equals_float64_sdpa(runner: Runner, lengths: list[tuple[int, int]]):
    """Catches a wrong block, a wrong offset in the last block, a mask off by one, a read of a dead slot."""
    config = model_config(heads=6, kv_heads=2, head_dim=16)
    batch = make_batch(lengths, config)
    assert_matches(runner(batch, config), dense_attention(batch))


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize("head_dim", [16, 64, 80])
@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (8, 2), (8, 1)], ids=lambda h: f"{h[0]}q{h[1]}kv")
def test_every_head_reads_its_own_kv_head(runner: Runner, heads: tuple[int, int], head_dim: int):
    """Catches heads mixed up by a fold or a view; group sizes 1, 3, 4, 8 and a row of 80 elements."""
    config = model_config(*heads, head_dim=head_dim)
    batch = make_batch(BATCHES["everything at once"], config)
    assert_matches(runner(batch, config), dense_attention(batch))


@pytest.mark.parametrize("runner", ANY_DTYPE.values(), ids=ANY_DTYPE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_within_its_rounding(runner: Runner, dtype: torch.dtype):
    """Catches sums kept in half precision; the oracle starts from the same rounded inputs."""
    config = model_config(heads=6, kv_heads=2, head_dim=64)
    batch = make_batch(BATCHES["everything at once"], config, dtype)
    assert_matches(runner(batch, config), dense_attention(batch))


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize(
    "lengths",
    [[(1, S + 2), (1, 2 * S), (1, 3 * S + 1)], [(1, S + 1), (3, S + 5), (2, 4 * S)]],
    ids=["decode", "mixed"],
)
def test_sequences_may_share_blocks(runner: Runner, lengths: list[tuple[int, int]]):
    """Catches a gather that takes a block for one sequence only: prefix sharing and forks break."""
    config = model_config()
    batch = make_batch(lengths, config, share_prefix=True)
    tables = batch.metadata.block_tables
    assert tables[0, 0] == tables[1, 0] == tables[2, 0]
    assert_matches(runner(batch, config), dense_attention(batch))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "bug",
    [
        "zeros",
        "no scale",
        "repeat instead of repeat_interleave",
        "mask off by one",
        "mask aligned at the top left",
    ],
)
def test_the_assertion_rejects_known_bugs(bug: str, dtype: torch.dtype):
    """Negative control: a tolerance that lets one of these pass would prove nothing above."""
    config = model_config()
    batch = make_batch(BATCHES["everything at once"], config, dtype)
    assert_matches(dense_attention(batch).to(dtype), dense_attention(batch))
    with pytest.raises(AssertionError):
        assert_matches(dense_attention(batch, bug).to(dtype), dense_attention(batch))


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_length_off_by_one_is_noticed(runner: Runner, off_by: int):
    """Negative control of the poison: one slot too many is a dead slot, one too few loses a token."""
    config = model_config()
    batch = make_batch([(1, S + 2), (1, 2 * S + 1), (1, 3)], config)
    expected = dense_attention(batch)
    batch.metadata = replace(
        batch.metadata,
        seq_lens=batch.metadata.seq_lens + off_by,
        max_seq_len=batch.metadata.max_seq_len + off_by,
    )
    with pytest.raises(AssertionError):
        assert_matches(runner(batch, config), expected)


def test_the_reference_gives_zeros_for_padding_rows():
    """Catches NaN from a softmax over nothing; captured CUDA graphs run rows with seq_len 0."""
    config = model_config()
    batch = make_batch([(1, 6)], config)
    expected = dense_attention(batch)
    batch.kv_cache.write(LAYER, batch.key, batch.value, batch.metadata.slot_mapping)
    metadata = replace(
        batch.metadata,
        seq_lens=torch.tensor([6, 0], dtype=torch.int32),
        query_start_loc=torch.tensor([0, 1, 2], dtype=torch.int32),
        block_tables=batch.metadata.block_tables.repeat(2, 1),
    )
    key, value = batch.kv_cache.key[LAYER], batch.kv_cache.value[LAYER]
    output = paged_attention_reference(batch.query.repeat(2, 1, 1), key, value, metadata, batch.scale)
    assert_matches(output[:1], expected)
    assert output[1].count_nonzero() == 0


@pytest.mark.parametrize(
    "lengths",
    [[(1, S - 1), (1, S + 1), (1, 2 * S)], [(1, S + 1), (3, 3), (2, S + 3)]],
    ids=["decode", "mixed"],
)
def test_the_triton_backend_hands_the_right_tensors_to_its_kernels(lengths: list[tuple[int, int]]):
    """Catches exchanged arguments; the kernels themselves are tested in tests/kernels, at more shapes."""
    config = model_config(heads=6, kv_heads=2, head_dim=16)
    batch = make_batch(lengths, config)
    backend = make_attention_backend("triton", config, S, torch.float32, "cpu")
    assert isinstance(backend, TritonAttention)
    assert_matches(run_backend(backend, batch), dense_attention(batch))


def test_the_example_of_the_module_docstring():
    """The literal numbers of the docstring: slots [10, 22, 23, 12] follow from tables and lengths."""
    metadata = make_metadata([[7, 2], [5, 3]], [7, 5], [1, 3], block_size=4)
    assert metadata.slot_mapping.tolist() == [10, 22, 23, 12]
    assert metadata.query_start_loc.tolist() == [0, 1, 4]
    allowed = causal_mask(3, 5, 1, torch.float32) == 0
    assert allowed.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_a_sequence_alone_gets_what_it_gets_in_a_batch(lengths: list[tuple[int, int]]):
    """Catches a padded neighbour that leaks in: texts would depend on which requests run beside them."""
    config = model_config(head_dim=64)
    batch = make_batch(lengths, config)
    together = run_torch(batch, config)
    starts = batch.metadata.query_start_loc.tolist()
    for row, (query_len, seq_len) in enumerate(lengths):
        rows = slice(starts[row], starts[row + 1])
        table = batch.metadata.block_tables[row].tolist()
        alone = replace(
            batch,
            query=batch.query[rows],
            key=batch.key[rows],
            value=batch.value[rows],
            metadata=make_metadata([table], [seq_len], [query_len], S),
        )
        torch.testing.assert_close(run_torch(alone, config), together[rows], rtol=0, atol=2e-6)


def test_forward_leaves_the_rest_of_the_cache_alone():
    """Catches a backend that writes beyond this step's slots, or into another layer."""
    config = model_config()
    batch = make_batch(BATCHES["everything at once"], config)
    expected = [tensor.clone() for tensor in batch.kv_cache.key + batch.kv_cache.value]
    layers = config.num_hidden_layers
    expected[LAYER].flatten(0, 1)[batch.metadata.slot_mapping] = batch.key
    expected[layers + LAYER].flatten(0, 1)[batch.metadata.slot_mapping] = batch.value
    run_torch(batch, config)
    for actual, wanted in zip(batch.kv_cache.key + batch.kv_cache.value, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


def test_one_plan_serves_all_layers_and_leaves_the_metadata_unchanged():
    """Catches a plan that remembers a layer's tensors, and a `prepare` that writes into its argument."""
    config = model_config()
    batch = make_batch(BATCHES["everything at once"], config)
    backend = TorchAttention(config, S, torch.float32, "cpu")
    prepared = backend.prepare(batch.metadata)
    assert batch.metadata.plan is None
    assert prepared.slot_mapping is batch.metadata.slot_mapping
    batch.kv_cache.key[0].copy_(batch.kv_cache.key[LAYER])
    batch.kv_cache.value[0].copy_(batch.kv_cache.value[LAYER])
    tensors = (batch.query, batch.key, batch.value, batch.kv_cache)
    for layer in (0, LAYER):
        output = backend.forward(*tensors, layer, prepared, batch.scale)
        assert_matches(output, dense_attention(batch))


def test_forward_without_prepare_says_what_to_do():
    """Catches a plan quietly rebuilt in each of 30 layers."""
    config = model_config()
    batch = make_batch([(1, 3)], config)
    backend = TorchAttention(config, S, torch.float32, "cpu")
    with pytest.raises(AssertionError, match="prepare"):
        backend.forward(
            batch.query, batch.key, batch.value, batch.kv_cache, LAYER, batch.metadata, batch.scale
        )


def test_a_mask_row_stands_once_for_each_query_head_of_the_group():
    """Catches rows in the order of heads instead of queries: the first head would see one token too few."""
    allowed = causal_mask(2, 3, 2, torch.float32) == 0
    assert allowed.int().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]


def test_a_long_chunk_is_cut_into_pieces_with_the_keys_they_may_see():
    """Catches a mask of all queries times all keys, and keys gathered which no query of a piece may see."""
    config = model_config(heads=6, kv_heads=2)
    batch = make_batch([(1, 9), (70, 240)], config)
    backend = TorchAttention(config, S, torch.float32, "cpu", piece=32)
    metadata = backend.prepare(batch.metadata)
    assert isinstance(metadata.plan, TorchPlan)
    decode, *chunk = metadata.plan.pieces
    assert (decode.rows, decode.num_keys, decode.mask) == (slice(0, 1), 9, None)
    assert [piece.rows for piece in chunk] == [slice(1, 33), slice(33, 65), slice(65, 71)]
    assert [piece.num_keys for piece in chunk] == [202, 234, 240]
    assert [tuple(piece.mask.shape) for piece in chunk] == [(3 * 32, 202), (3 * 32, 234), (3 * 6, 240)]
    assert [len(piece.blocks) for piece in chunk] == [51, 59, 60]
    assert_matches(run_backend(backend, batch), dense_attention(batch))


def test_auto_is_the_fastest_that_fits_and_an_unknown_name_is_refused():
    """Catches a typo in attention_backend that silently runs something else."""
    config = model_config()
    assert make_attention_backend("auto", config, S, torch.float32, "cpu").name == "numba"
    assert make_attention_backend("auto", config, S, torch.bfloat16, "cpu").name == "numba"
    assert make_attention_backend("auto", config, S, torch.float16, "cpu").name == "torch"
    for name in ("torch", "numba"):
        assert make_attention_backend(name, config, S, torch.float32, "cpu").name == name
    with pytest.raises(ValueError, match="'flash'"):
        make_attention_backend("flash", config, S, torch.float32, "cpu")


@pytest.mark.parametrize(("dtype", "device"), [(torch.float16, "cpu"), (torch.float32, "cuda")])
def test_the_numba_backend_refuses_what_its_kernel_cannot_read(dtype: torch.dtype, device: str):
    """Catches float16 bits read as bfloat16, and a kernel for the host that is handed a device pointer."""
    with pytest.raises(ValueError, match="bfloat16 on a CPU, not for"):
        make_attention_backend("numba", model_config(), S, dtype, device)


def test_without_numba_auto_falls_back_to_torch(monkeypatch: pytest.MonkeyPatch):
    """Catches an ImportError at start-up where a package that only makes things faster is missing."""
    monkeypatch.setattr("minivllm.backends.attention_kernels.find_spec", lambda name: None)
    assert make_attention_backend("auto", model_config(), S, torch.float32, "cpu").name == "torch"
    with pytest.raises(ValueError, match="pip install numba"):
        make_attention_backend("numba", model_config(), S, torch.float32, "cpu")


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_result_does_not_depend_on_the_number_of_threads(num_threads: int):
    """Catches scratch memory shared by two programs, and rows dealt out but not put back in their places."""
    config = model_config()
    batch = make_batch(BATCHES["decode of very different lengths"], config)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert_matches(run_numba(batch, config), dense_attention(batch))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("runner", [run_torch, run_numba])
def test_no_slot_beyond_the_end_reaches_the_result(runner: Runner):
    """Catches a dead slot which is masked but multiplied all the same: 0 * NaN would be NaN."""
    config = model_config()
    batch = make_batch([(1, S + 1), (1, S + 2), (1, S + 3)], config)
    expected = dense_attention(batch)
    for past, table in zip(batch.past_and_new, batch.metadata.block_tables.tolist(), strict=True):
        for position in range(len(past[0]), math.ceil(len(past[0]) / S) * S):
            for tensor in (batch.kv_cache.key[LAYER], batch.kv_cache.value[LAYER]):
                tensor[table[position // S], position % S] = math.nan
    assert_matches(runner(batch, config), expected)
    batch.metadata = replace(batch.metadata, seq_lens=batch.metadata.seq_lens + 1)
    assert runner(batch, config).isnan().any(dim=-1).all()  # negative control: the NaNs begin right there


def test_scores_far_from_zero_do_not_overflow():
    """Catches exp without the maximum subtracted, and a maximum that is not carried from block to block."""
    config = model_config()
    batch = make_batch([(1, 5 * S), (1, 2 * S + 1)], config)
    batch.query *= 400
    for runner in RUNNERS.values():
        assert_matches(runner(batch, config), dense_attention(batch))


@given(seq_lens=st.lists(st.integers(1, 1000), min_size=1, max_size=40), num_threads=st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_dealing_out_keeps_every_sequence_and_evens_the_load(seq_lens: list[int], num_threads: int):
    """Catches a lost sequence, and one thread with all the long ones."""
    order = deal_out(np.array(seq_lens), num_threads).tolist()
    assert sorted(order) == list(range(len(seq_lens)))
    hands = [
        sorted(range(len(seq_lens)), key=lambda i: -seq_lens[i])[t::num_threads] for t in range(num_threads)
    ]
    loads = [sum(seq_lens[i] for i in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(seq_lens)
    assert [seq_lens[i] for i in order] == [seq_lens[i] for hand in hands for i in hand]

"""Decode steps that are replayed. Without a GPU, all but the recording itself: buffers, buckets, padding.

`PretendCapture` stands in for the recording. Like a CUDA graph it reads the buffers anew at each replay and
writes its result to the same memory each time. What only a GPU can show is in `tests/kernels/test_kernel_gpu.py`.
"""

import pytest
import torch

from minivllm import SamplingParams
from minivllm.attention import paged_attention_reference
from minivllm.backends.cuda_graphs import LARGEST_BUCKET, DecodeGraphs, bucket_sizes, can_replay
from minivllm.kernels.reshape_and_cache import reshape_and_cache_reference
from minivllm.kv_cache import KVCache
from minivllm.weights.loader import load_model
from tests.helpers_tensor import make_metadata, poison_

S = 4


class PretendCapture:
    """Records by remembering the function; counts."""

    def __init__(self):
        self.num_recorded = 0

    def __call__(self, step):
        self.num_recorded += 1
        memory = []

        def replay():
            result = step()
            if not memory:
                memory.append(result)
            return memory[0].copy_(result)

        return replay


class ReferenceAttention:
    """The oracles as a backend: like the Triton kernels they skip slots of -1 and rows of length 0."""

    name = "reference"

    def prepare(self, metadata):
        return metadata

    def forward(self, query, key, value, kv_cache, layer, metadata, scale):
        key_cache, value_cache = kv_cache.key[layer], kv_cache.value[layer]
        reshape_and_cache_reference(key, value, key_cache, value_cache, metadata.slot_mapping)
        return paged_attention_reference(query, key_cache, value_cache, metadata, scale)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_model(tiny_llama, ReferenceAttention(), torch.float32, torch.device("cpu"))


def make_cache(model):
    """A KV cache whose every slot holds numbers no model would write."""
    cache = KVCache(model.config, 32, S, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in (*cache.key, *cache.value):
        tensor.normal_(generator=generator)
    return cache


def make_step(tables, seq_lens, seed):
    """A decode step: one token for each sequence."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, 90, (len(tables),), generator=generator)
    positions = torch.tensor(seq_lens) - 1
    return input_ids, positions, make_metadata(tables, seq_lens, [1] * len(tables), S)


# Sequences leave, grow and change places; block 7 goes from one that has left to another, which writes the
# slot that the old one wrote last.
STEPS = [
    make_step([[1, 2], [3], [4, 5, 6], [7], [8, 9]], [7, 2, 11, 1, 8], seed=1),  # 5 rows: bucket 8
    make_step([[1, 2], [3], [4, 5, 6], [7], [8, 9, 10]], [8, 3, 12, 2, 9], seed=2),  # 5 again: replayed
    make_step([[3], [1, 2, 7]], [4, 9], seed=3),  # 2: bucket 2, no padding
    make_step([[3, 13], [1, 2, 7]], [5, 10], seed=4),  # replayed
    make_step([[8, 9, 10], [4, 5, 6, 12], [3, 13]], [10, 13, 6], seed=5),  # 3: bucket 4, one row of padding
    make_step([[1, 2, 7], [8, 9, 10], [14]], [11, 11, 1], seed=6),  # replayed
    make_step(
        [[8, 9, 10], [14], [1, 2, 7], [4, 5, 6, 12], [3, 13], [15]], [12, 2, 12, 14, 7, 1], seed=7
    ),  # 8
]


@torch.inference_mode()
def run_both(model, graphs_class=DecodeGraphs):
    """Run STEPS with graphs and without; returns (graphs, [hidden, hidden], [cache, cache])."""
    replayed, eager = make_cache(model), make_cache(model)
    graphs = graphs_class(model, replayed, 8, 24, capture=PretendCapture())
    hidden = [], []
    for input_ids, positions, metadata in STEPS:
        assert graphs.fits(metadata)
        hidden[0].append(graphs.run(input_ids, positions, metadata).clone())
        hidden[1].append(model(input_ids, positions, eager, metadata))
    return graphs, hidden, (replayed, eager)


@torch.inference_mode()
def test_all_buckets_can_be_recorded_before_the_first_request(model):
    """Would catch a warm-up that writes into the KV cache, or after which a request still waits for a recording."""
    cache, eager, capture = make_cache(model), make_cache(model), PretendCapture()
    before = [tensor.clone() for tensor in (*cache.key, *cache.value)]
    graphs = DecodeGraphs(model, cache, 8, 24, capture=capture)
    assert graphs.record_all() == capture.num_recorded == len(bucket_sizes(8)) == 4
    assert all(map(torch.equal, before, (*cache.key, *cache.value)))
    hidden = [], []
    for input_ids, positions, metadata in STEPS:
        hidden[0].append(graphs.run(input_ids, positions, metadata).clone())
        hidden[1].append(model(input_ids, positions, eager, metadata))
    assert_same(hidden, (cache, eager))
    assert graphs.num_replays == len(STEPS) and capture.num_recorded == 4
    assert graphs.record_all() == 0


def assert_same(hidden, caches):
    for mine, want in zip(*hidden, strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-5)
    for name in ("key", "value"):
        mine, want = (torch.stack(getattr(cache, name)) for cache in caches)
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-5)


def test_replayed_steps_give_the_same_hidden_states_and_the_same_kv_cache(model):
    """Would catch inputs of the step before: the whole cache is compared, so a stray write shows."""
    graphs, hidden, caches = run_both(model)
    assert graphs.num_replays == 4
    assert_same(hidden, caches)


@pytest.mark.parametrize("forgotten", ["slot_mapping", "seq_lens", "block_tables", "positions", "input_ids"])
def test_the_comparison_notices_a_buffer_that_is_not_staged(model, forgotten):
    """The negative control of the test above: each buffer forgotten in turn."""

    class Forgetful(DecodeGraphs):
        def _stage(self, input_ids, positions, metadata, bucket):
            buffer = getattr(self, f"_{forgotten}", None)
            buffer = getattr(self._metadata, forgotten) if buffer is None else buffer
            before = buffer.clone()
            super()._stage(input_ids, positions, metadata, bucket)
            if self._replays:  # the first step is staged whole, as when everything is still zero
                buffer.copy_(before)

    _, hidden, caches = run_both(model, Forgetful)
    with pytest.raises(AssertionError):
        assert_same(hidden, caches)


def test_the_comparison_notices_padding_that_keeps_its_slots(model):
    """Rows of sequences that have left would overwrite KV: here padding is not made harmless."""

    class Careless(DecodeGraphs):
        def _stage(self, input_ids, positions, metadata, bucket):
            super()._stage(input_ids, positions, metadata, len(input_ids))

    _, hidden, caches = run_both(model, Careless)
    with pytest.raises(AssertionError):
        assert_same(hidden, caches)


def test_one_recording_for_each_bucket(model):
    """Would catch a graph per step: recording takes a hundred times as long as replaying."""
    graphs, _, _ = run_both(model)
    assert graphs._capture.num_recorded == 3  # buckets 8, 2 and 4
    assert sorted(graphs._replays) == [2, 4, 8]


@torch.inference_mode()
def test_poison_in_free_blocks_is_not_read(model):
    """Would catch padding that reads block 0, or columns of a table that a longer one has left behind."""
    results = []
    for poisoned in (False, True):
        cache = make_cache(model)
        graphs = DecodeGraphs(model, cache, 8, 24, capture=PretendCapture())
        for step in STEPS[:2]:
            graphs.run(*step)
        if poisoned:
            for tensor in (*cache.key, *cache.value):
                for block in (0, 4, 5, 6, 7, 8, 9, 10, *range(11, 32)):
                    poison_(tensor[block], torch.Generator().manual_seed(block))
        results.append(graphs.run(*make_step([[1, 2], [3]], [8, 3], seed=9)).clone())
    assert torch.equal(*results) and results[0].abs().sum() > 0


def test_prefill_and_large_batches_are_not_replayed(model):
    """Would catch a chunk of a prompt squeezed into rows of one token."""
    graphs = DecodeGraphs(model, make_cache(model), 8, 24, capture=PretendCapture())
    assert graphs.fits(make_metadata([[1]] * 8, [1] * 8, [1] * 8, S))
    assert not graphs.fits(make_metadata([[1], [2]], [3, 1], [2, 1], S))
    assert not graphs.fits(make_metadata([[1]] * 9, [1] * 9, [1] * 9, S))


def test_buckets():
    """The literal example, and that no batch has more than 7 rows of padding."""
    assert bucket_sizes(20) == [1, 2, 4, 8, 16, 24]
    assert bucket_sizes(1) == [1, 2, 4, 8]
    assert max(bucket_sizes(10_000)) == LARGEST_BUCKET
    sizes = bucket_sizes(64)
    for num_seqs in range(1, 65):
        assert 0 <= min(size for size in sizes if size >= num_seqs) - num_seqs <= 7


def test_the_engine_gives_the_same_tokens_with_replayed_steps(make_engine):
    """Would catch a runner that replays with what belongs to another step; on the Triton kernels."""
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
    results = []
    for replaying in (False, True):
        engine = make_engine(attention_backend="triton", skip_tokenizer_init=True)
        assert engine.runner.decode_steps is None  # there is no GPU
        if replaying:
            runner = engine.runner
            runner.decode_steps = DecodeGraphs(runner.model, runner.kv_cache, 8, 64, capture=PretendCapture())
        for i, prompt in enumerate(prompts):
            params = SamplingParams(temperature=0.0, max_tokens=3 + i, ignore_eos=True)
            engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
        outputs = {}
        while engine.has_unfinished_requests():
            outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
        results.append(outputs)
        if replaying:
            assert runner.decode_steps.num_replays > 0
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("device", "backend", "enforce_eager", "expected"),
    [
        ("cuda", "triton", False, True),
        ("cuda", "triton", True, False),
        ("cuda", "torch", False, False),
        ("cpu", "triton", False, False),
    ],
)
def test_graphs_are_for_the_triton_backend_on_a_gpu_and_can_be_turned_off(
    device, backend, enforce_eager, expected
):
    """Would catch enforce_eager being ignored, or a recording of a backend that decides by values."""
    assert can_replay(torch.device(device), backend, enforce_eager) is expected


def test_the_engine_makes_graphs_of_its_own_size(make_engine, monkeypatch):
    """Would catch graphs that are never made, or buffers too small for the engine's batches."""
    asked, made = [], []
    monkeypatch.setattr("minivllm.distributed.worker.can_replay", lambda *args: asked.append(args) or True)
    monkeypatch.setattr("minivllm.distributed.worker.DecodeGraphs", lambda *args: made.append(args))
    engine = make_engine(max_num_seqs=12, max_model_len=48, enforce_eager=True)
    assert asked == [(engine.device, engine.attention.name, True)]
    assert made == [(engine.runner.model, engine.runner.kv_cache, 12, 48)]

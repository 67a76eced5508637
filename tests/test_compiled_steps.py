"""Decode steps in one compiled call, against the model call by call and against Hugging Face's texts."""

import numpy as np
import pytest
import torch

from minivllm import LLM
from minivllm.backends.attention_kernels import NumbaAttention
from minivllm.backends.attention_torch import TorchAttention
from minivllm.backends.compiled_steps import CompiledSteps, can_compile
from minivllm.baselines.compare import hidden_states
from minivllm.bench.steps import ATTENTION, MATMUL, milliseconds_per_step, profile_steps
from minivllm.kernels.linear_cpu import PanelLinear, TorchLinear
from minivllm.kv_cache import KVCache
from minivllm.weights.loader import load_model, load_model_config
from minivllm.weights.random_model import FAMILIES, random_llama
from tests import test_engine
from tests.helpers_tensor import make_metadata

S = 4
# The largest difference, as a part of the largest number. The same kernels in the same order, compiled apart.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}

# The texts of Hugging Face for the prompts of `test_engine.py`.
hugging_face, expected = test_engine.hugging_face, test_engine.expected


@pytest.fixture(autouse=True)
def panels(monkeypatch):
    """Products by panels, which a model as small as these would not choose."""
    monkeypatch.setattr("minivllm.backends.linears.choose_linear_kernel", lambda weights, memory: PanelLinear)


def load(folder, backend=NumbaAttention, dtype=torch.float32):
    return load_model(folder, backend(load_model_config(folder), S, dtype, "cpu"), dtype, "cpu")


def make_cache(model, dtype):
    """A KV cache full of numbers, the same each time."""
    cache = KVCache(model.config, 24, S, dtype, "cpu")
    cache.blocks.normal_(generator=torch.Generator().manual_seed(0))
    return cache


def make_step(num_rows, shift=0):
    """Rows of 5 to 8 tokens; first blocks are shared, last ones are not; two of many rows have three queries."""
    blocks = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    query_lens = [3 if num_rows > 5 and i < 2 else 1 for i in range(num_rows)]
    seq_lens = [8 if i < 2 else 5 + i % 4 for i in range(num_rows)]
    tables = [[blocks[(i + shift) % 8], blocks[8 + i]] for i in range(num_rows)]
    metadata = make_metadata(tables, seq_lens, query_lens, S)
    positions = [p for n, q in zip(seq_lens, query_lens, strict=True) for p in range(n - q, n)]
    ids = torch.randint(0, 250, (sum(query_lens),), generator=torch.Generator().manual_seed(2))
    return ids, torch.tensor(positions), metadata


def assert_close(actual, expected, dtype):
    """The one assertion on numbers (NaN fails too)."""
    error = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert error <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 4, 16])
def test_a_compiled_step_is_the_model_call_by_call(tiny_llama, dtype, num_rows):
    """Would catch kernels in another order, another layer's weights or cache, and an update that is lost."""
    model, twin = load(tiny_llama, dtype=dtype), load(tiny_llama, dtype=dtype)
    cache, other = make_cache(model, dtype), make_cache(model, dtype)
    steps = CompiledSteps(model, cache, max_num_rows=20)
    for array in steps._scratch[:-2]:
        array.fill(np.nan)
    ids, positions, metadata = make_step(num_rows)
    assert steps.fits(metadata)
    actual = steps.run(ids, positions, metadata)
    wanted = twin(ids, positions, other, metadata)
    assert_close(actual, wanted, dtype)
    assert_close(cache.blocks, other.blocks, dtype)
    written = torch.zeros(24 * S, dtype=torch.bool)
    written[metadata.slot_mapping] = True
    before = make_cache(model, dtype).blocks.flatten(2, 3)[:, :, ~written]
    assert torch.equal(cache.blocks.flatten(2, 3)[:, :, ~written], before)
    if dtype == torch.float32:  # and PyTorch's operators, which share none of the kernels
        reference = load(tiny_llama, TorchAttention)
        assert_close(actual, reference(ids, positions, make_cache(model, dtype), metadata), dtype)
    assert_close(
        model(ids, positions, make_cache(model, dtype), metadata), wanted, dtype
    )  # its weights are whole
    for wrong in (  # negative controls
        torch.zeros_like(actual),
        steps.run(ids, positions + 1, metadata),
        steps.run(ids, positions, make_step(num_rows, shift=1)[2]),
    ):
        with pytest.raises(AssertionError):
            assert_close(wrong, wanted, dtype)


SCHEDULES = {
    "all at once": {"num_blocks": 256},
    "preempted by recompute": {"num_blocks": 11},
    "preempted by swap": {"num_blocks": 14, "preemption_mode": "swap", "swap_space_bytes": 1 << 20},
    "chunked, cached, preempted": {"num_blocks": 16, "max_num_batched_tokens": 9, "max_num_seqs": 5},
    "with drafts": {
        "num_blocks": 256,
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
    },
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_gives_hugging_faces_text(make_engine, expected, name):
    """Would catch a step which is compiled for another batch, a freed block written to, and drafts left out."""
    engine = make_engine(**SCHEDULES[name])
    twice = [index for index in range(len(test_engine.PROMPTS)) for _ in range(2)]
    outputs = test_engine.run(engine, [test_engine.PROMPTS[index] for index in twice])
    assert test_engine.tokens(outputs) == [expected[index] for index in twice]
    assert engine.runner.decode_steps.num_runs > 10
    assert (engine.stats().num_preemptions > 0) == ("preempted" in name)


def test_a_compiled_step_that_writes_elsewhere_would_be_noticed(make_engine, expected):
    """Negative control of the test above: K and V of each decoded token go into the slot beside their own."""
    engine = make_engine()
    steps = engine.runner.decode_steps
    run_layers = steps.run_layers
    steps.run_layers = lambda batch, scratch: run_layers(batch._replace(slots=batch.slots ^ 1), scratch)
    assert test_engine.tokens(test_engine.run(engine)) != expected


def test_a_step_with_a_prompt_is_not_compiled(make_engine):
    """Would catch a prefill in the decode kernel: right, and much too slow."""
    engine = make_engine()
    engine.add_request("x", {"prompt_token_ids": [*range(20)]}, test_engine.greedy(3))
    engine.step()
    assert engine.runner.decode_steps.num_runs == 0
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.runner.decode_steps.num_runs == 2


def test_a_step_with_more_rows_than_there_is_memory_for_runs_call_by_call(tiny_llama):
    """Would catch a write beyond the end of the scratch memory."""
    model = load(tiny_llama)
    steps = CompiledSteps(model, make_cache(model, torch.float32), max_num_rows=3)
    assert steps.fits(make_step(3)[2])
    assert not steps.fits(make_step(4)[2])


def test_what_can_be_compiled(tiny_llama, tmp_path, monkeypatch):
    """Would catch a bias or a norm of heads that the compiled step leaves out, and `enforce_eager` ignored."""
    model = load(tiny_llama)
    assert can_compile(model, enforce_eager=False)
    assert not can_compile(model, enforce_eager=True)
    assert not can_compile(load(tiny_llama, TorchAttention), enforce_eager=False)
    for family in ("qwen2", "qwen3"):  # a bias; a norm of each head
        folder = random_llama(tmp_path / family, **FAMILIES[family])
        assert not can_compile(load(folder), enforce_eager=False)
    monkeypatch.setattr("minivllm.backends.linears.choose_linear_kernel", lambda weights, memory: TorchLinear)
    assert not can_compile(load(tiny_llama), enforce_eager=False)


def test_the_layers_of_a_short_prompt_can_be_compared(tiny_llama):
    """Would catch a comparison that waits for hooks: a compiled step calls no layer, and short prompts are compiled."""
    llm = LLM(str(tiny_llama), num_blocks=64, block_size=4, max_model_len=64)
    for prompt in ([5, 6, 7], [*range(20)]):
        states = hidden_states(llm, prompt)
        assert [state.shape for state in states] == [(len(prompt), 64)] * 2
    assert llm.llm_engine.runner.decode_steps.num_runs == 0
    llm.generate({"prompt_token_ids": [5, 6, 7]}, test_engine.greedy(1), use_tqdm=False)
    assert llm.llm_engine.runner.decode_steps.num_runs == 1


def test_a_profile_looks_into_compiled_steps(make_engine):
    """Would catch a step whose products and attention are all counted as "rest"."""
    engine = make_engine()
    with profile_steps(engine) as steps:
        test_engine.run(engine)
    decode = [record for record in steps.records if record.is_decode]
    parts = milliseconds_per_step(decode)
    cycles = engine.runner.decode_steps._scratch.cycles
    if cycles[2]:  # 0 on processors whose counter a program may not read
        assert parts[MATMUL] > 0 and parts[ATTENTION] > 0
        assert cycles[0] > 0 and cycles[1] > 0 and cycles[0] + cycles[1] < cycles[2]
    assert all(sum(record.parts.values()) <= record.seconds for record in decode)

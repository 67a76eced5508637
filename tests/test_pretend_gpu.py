"""The engine on a GPU that is not there (`pretend_gpu.py`): devices, recordings, and the same tokens as on a CPU."""

import pytest
import torch

from minivllm import BeamSearchParams, SamplingParams
from minivllm.backends.attention_kernels import TritonAttention
from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.kernels.rms_norm import _rms_norm_kernel, rms_norm
from minivllm.kernels.silu_and_mul import silu_and_mul
from minivllm.viz.trace import Trace
from tests.pretend_gpu import OnGpu, pretend_gpu

GREEDY = {"temperature": 0.0, "ignore_eos": True}
# One request for each thing that makes tensors on the device.
REQUESTS = [
    SamplingParams(max_tokens=6, prompt_logprobs=2, **GREEDY),
    SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=7, ignore_eos=True, logprobs=2),
    SamplingParams(temperature=1.0, top_k=5, min_p=0.05, seed=1, n=2, max_tokens=5, ignore_eos=True),
    SamplingParams(
        presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.2, max_tokens=4, **GREEDY
    ),
    SamplingParams(logit_bias={5: 3.0}, allowed_token_ids=[5, 6, 7], bad_words=["a"], max_tokens=4, **GREEDY),
    BeamSearchParams(beam_width=2, max_tokens=4),
]


@pytest.fixture
def gpu(monkeypatch):
    with pretend_gpu(monkeypatch) as recorder:
        yield recorder


def make_engine(folder, device, attention=None, trace=None, **options):
    defaults = {"num_blocks": 64, "block_size": 4, "max_num_seqs": 8}
    config = EngineConfig(str(folder), device=device, dtype="float32", **(defaults | options))
    return LLMEngine(config, attention_backend=attention, trace=trace)


def run(engine, requests):
    """Every request's token ids, in order; and all blocks are back afterwards."""
    for i, params in enumerate(requests):
        engine.add_request(str(i), {"prompt_token_ids": list(range(3, 6 + 3 * i))}, params)
    tokens = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[output.request_id] = [list(completion.token_ids) for completion in output.outputs]
    assert engine.scheduler.kv.pool.num_free == engine.runner.kv_cache.num_blocks
    return tokens


def test_the_engine_gives_the_same_tokens_on_the_gpu(tiny_llama, gpu):
    """Would catch a tensor that was left on the CPU anywhere between the plan and the token."""
    # (the CPU's engine has no tensor that says cuda, so the pretence does not touch it)
    expected = run(make_engine(tiny_llama, "cpu"), REQUESTS)
    engine = make_engine(tiny_llama, "cuda")
    assert engine.attention.name == "triton" and engine.runner.decode_steps is not None
    weights = [*engine.runner.model.parameters(), *engine.runner.model.buffers()]
    assert all(isinstance(weight.data, OnGpu) or isinstance(weight, OnGpu) for weight in weights)
    assert run(engine, REQUESTS) == expected
    assert gpu.num_recorded > 0 and engine.runner.decode_steps.num_replays > 0


def test_a_replay_runs_the_recording_and_no_python(tiny_llama, gpu):
    """Would catch a pretended graph that calls the model again: it would see decisions no real graph sees."""
    engine = make_engine(tiny_llama, "cuda")
    calls = []
    engine.runner.model.register_forward_hook(lambda *_: calls.append(1))
    params = [SamplingParams(max_tokens=8, **GREEDY)] * 3
    run(engine, params)
    num_prefills = 1  # all three prompts in one step
    # Each bucket runs once as ever, and once more for its recording.
    assert len(calls) == num_prefills + 2 * gpu.num_recorded
    assert engine.runner.decode_steps.num_replays > gpu.num_recorded


def test_buffers_that_are_not_filled_change_the_text(tiny_llama, gpu, monkeypatch):
    """Negative control: if a replay did not read its inputs from the buffers, the first test would not notice."""
    params = [SamplingParams(max_tokens=8, **GREEDY)]
    expected = run(make_engine(tiny_llama, "cuda", enforce_eager=True), params)
    engine = make_engine(tiny_llama, "cuda")
    assert run(engine, params) == expected
    fill = engine.runner.decode_steps._stage
    filled = []

    def only_once(*args):
        if not filled:
            filled.append(fill(*args))

    monkeypatch.setattr(engine.runner.decode_steps, "_stage", only_once)
    assert run(engine, params) != expected


class Looks(TritonAttention):
    """Decides by a value: how many tokens are there?"""

    def forward(self, query, *args):
        metadata = args[-2]
        assert metadata.seq_lens.max().item() > 0
        return super().forward(query, *args)


def test_looking_at_a_value_ends_a_recording(tiny_llama, gpu):
    """Negative control: what a CUDA graph forbids is noticed, and only while one is recorded."""
    params = [SamplingParams(max_tokens=3, **GREEDY)]
    assert run(make_engine(tiny_llama, "cuda", attention=Looks(), enforce_eager=True), params)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        run(make_engine(tiny_llama, "cuda", attention=Looks()), params)


def test_swapped_and_copied_blocks_cross_the_devices(tiny_llama, gpu):
    """Would catch a swap that moves blocks within one device, or an index on the other one."""
    params = [SamplingParams(n=2, seed=i, max_tokens=8, ignore_eos=True) for i in range(3)]
    expected = run(make_engine(tiny_llama, "cpu"), params)
    options = {"num_blocks": 12, "preemption_mode": "swap", "swap_space_bytes": 1 << 20}
    engine = make_engine(tiny_llama, "cuda", trace=Trace(), **options)
    assert not isinstance(engine.runner.kv_cache._cpu_blocks, OnGpu)
    assert run(engine, params) == expected
    stats = engine.stats()
    assert stats.num_swapped_out_blocks == stats.num_swapped_in_blocks > 0
    assert stats.num_copied_blocks > 0


def test_the_kv_cache_gets_what_the_largest_step_leaves(tiny_llama, gpu, monkeypatch):
    """Would catch memory counted twice, or other programs' taken for ours. In MB of 100: 60 free, 15 ours."""
    mb = 1_000_000
    answers = {
        "synchronize": None,
        "mem_get_info": (60 * mb, 100 * mb),
        "memory_reserved": 15 * mb,
        "max_memory_reserved": 20 * mb,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    engine = make_engine(tiny_llama, "cuda", num_blocks=None, max_num_batched_tokens=32)
    # 90 of 100, less 25 that others hold (100 - 60 - 15), less 20 for weights and the largest step
    block_bytes = 4 * engine.model_config.kv_bytes_per_token(4)
    assert engine.runner.kv_cache.num_blocks == 45 * mb // block_bytes


def test_the_pretence_refuses_what_a_gpu_refuses(gpu):
    """Negative control of all above: tensors of two devices, numpy, a pointer to the CPU in a kernel."""
    here, there = torch.ones(2, 4), torch.ones(2, 4, device="cuda")
    assert (there + 1).device.type == "cuda" and (there + 1).tolist() == [[2.0] * 4] * 2
    with pytest.raises(RuntimeError, match="same device, got cuda:0 and cpu"):
        here + there
    with pytest.raises(RuntimeError, match="same device"):
        torch.nn.functional.linear(there, here)
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        there.numpy()
    assert silu_and_mul(there).tolist() == [[pytest.approx(0.7310586)] * 2] * 2
    with pytest.raises(ValueError, match="All tensors must be on one device"):
        rms_norm(there, torch.ones(4), 1e-5)
    row = torch.ones(4)
    with pytest.raises(RuntimeError, match="pointer to the CPU"):
        _rms_norm_kernel[(2,)](there, None, there, None, row, 4, 0, 1e-5, H=4, LANES=4)

"""What only a GPU can show: graphs, no waiting for the device, a cache of real size, the chip's own limits."""

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from minivllm import LLM, SamplingParams
from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.kernels.paged_attention import paged_attention, paged_attention_naive
from minivllm.kernels.prefill_attention import prefill_attention
from minivllm.kernels.reshape_and_cache import reshape_and_cache
from minivllm.kernels.rms_norm import rms_norm
from minivllm.kernels.rotary_embedding import rotary_embedding
from minivllm.kernels.silu_and_mul import silu_and_mul
from minivllm.weights.random_model import random_llama
from tests.kernels.attention_case import DTYPES, Case, assert_matches

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_splits", [1, 4, None])
def test_a_captured_graph_follows_changed_lengths_and_tables(num_splits):
    """Catches a launch that depends on values: a graph replays the launch, only the tensors have changed."""
    case = Case([300, 40, 0, 1000], dtype=torch.float16, device="cuda")
    args = list(case.decode_args())
    paged_attention(*args, num_splits=num_splits)  # compiles: not allowed during the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_attention(*args, num_splits=num_splits)
    graph.replay()
    assert_matches(out, case.expected_decode(), torch.float16)

    case.lens, case.tables = [5, 900, 290, 0], [case.tables[i] for i in (1, 3, 0, 2)]
    case.query_lens = [1, 1, 1, 0]
    case.query = torch.randn(3, 4, 64, device="cuda").half()
    # The moved sequences are as long as before or shorter, so all their slots hold numbers.
    case.lens = [min(n, len(table) * 16) for n, table in zip(case.lens, case.tables, strict=True)]
    args[0].copy_(case.decode_query)
    args[3].copy_(case.block_tables)
    args[4].copy_(case.seq_lens)
    graph.replay()
    assert_matches(out, case.expected_decode(), torch.float16)


def test_a_whole_layer_can_be_captured():
    """Catches any kernel of a decode step that allocates or asks in a way a graph cannot hold."""
    key_cache = torch.zeros(8, 16, 2, 64, device="cuda")
    value_cache = torch.zeros_like(key_cache)
    cos_sin, weight = torch.ones(64, 64, device="cuda"), torch.ones(256, device="cuda")
    x = torch.randn(3, 256, device="cuda")
    positions = torch.tensor([3, 0, 9], device="cuda")
    slots = torch.tensor([19, 32, 57], device="cuda")
    tables = torch.tensor([[1], [2], [3]], dtype=torch.int32, device="cuda")
    lens = torch.tensor([4, 1, 10], dtype=torch.int32, device="cuda")

    def layer() -> torch.Tensor:
        normed, total = rms_norm(x, weight, 1e-5, x)
        query = normed.view(3, 4, 64).clone()
        key = total[:, :128].reshape(3, 2, 64).clone()
        rotary_embedding(positions, query, key, cos_sin)
        reshape_and_cache(key, key, key_cache, value_cache, slots)
        out = paged_attention(query, key_cache, value_cache, tables, lens, 0.125)
        return silu_and_mul(out.view(3, 256))

    eager = layer()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer()
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, eager) and eager.abs().sum() > 0


def test_no_wrapper_waits_for_the_device():
    """Catches an .item() or a comparison in a forward path, which stops the host once in each layer."""
    case = Case([300, 40], [20, 40], device="cuda")
    decode, prefill = case.decode_args(), case.prefill_args()
    key = torch.randn(2, 2, 64, device="cuda")
    slots = torch.tensor([0, 1], device="cuda")
    cos_sin, weight = torch.ones(64, 64, device="cuda"), torch.ones(64, device="cuda")
    rows = torch.randn(4, 64, device="cuda")

    def everything() -> None:
        paged_attention(*decode)
        paged_attention(*decode, num_splits=4)
        paged_attention_naive(*decode)
        prefill_attention(*prefill)
        reshape_and_cache(key, key, case.key_cache, case.value_cache, slots)
        rms_norm(rows, weight, 1e-5, rows)
        rotary_embedding(slots, key, key.clone(), cos_sin)
        silu_and_mul(rows)

    everything()  # compiles and loads
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
        with pytest.raises(RuntimeError, match="synchroniz"):
            rows.sum().item()  # the mode does notice
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_a_cache_of_more_than_2_to_the_31_elements():
    """Catches block * stride in 32 bits at full size, on the device: 4.6 GB for K and V in one tensor."""
    B, S, Hkv, D = 140_000, 16, 8, 128
    cache = torch.zeros(B, S, Hkv, D, dtype=torch.float16, device="cuda")
    key = torch.randn(S, Hkv, D, device="cuda").half()
    reshape_and_cache(key, key, cache, cache, (B - 1) * S + torch.arange(S, device="cuda"))
    assert torch.equal(cache[B - 1], key) and cache[: B - 1].count_nonzero() == 0
    query = torch.randn(1, 32, D, device="cuda").half()
    lens = torch.tensor([S], dtype=torch.int32, device="cuda")
    starts = torch.tensor([0, 1], dtype=torch.int32, device="cuda")
    far, near = (torch.tensor([[b]], dtype=torch.int32, device="cuda") for b in (B - 1, 0))
    for splits in (1, 2):
        out = paged_attention(query, cache, cache, far, lens, 0.1, num_splits=splits)
        expected = paged_attention(query, cache[-1:], cache[-1:], near, lens, 0.1, num_splits=splits)
        assert torch.equal(out, expected) and out.abs().sum() > 0
    out = prefill_attention(query, cache, cache, far, lens, starts, 0.1)
    assert torch.equal(out, prefill_attention(query, cache[-1:], cache[-1:], near, lens, starts, 0.1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_heuristics_tiles_launch_and_are_right_for_every_width(dtype):
    """Catches "out of resource: shared memory" on this chip, and errors that only real tiles show."""
    for head_dim, heads in itertools.product([64, 80, 128, 256], [(9, 3), (8, 8), (32, 4)]):
        options = {"heads": heads, "head_dim": head_dim, "dtype": dtype, "device": "cuda"}
        case = Case([700, 33, 1100], [300, 1, 77], **options)
        for num_splits in (None, 1, 8):
            out = paged_attention(*case.decode_args(), num_splits=num_splits)
            assert_matches(out, case.expected_decode(), dtype)
        assert_matches(prefill_attention(*case.prefill_args()), case.expected_prefill(), dtype)
        case = Case([700, 33], [1, 1], **options)
        assert_matches(prefill_attention(*case.prefill_args()), case.expected_prefill(), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_long_sequences_agree_with_torch_on_the_gpu(dtype):
    """Catches an error that grows with the length: 20,000 tokens, against torch's own attention."""
    n, heads, kv_heads, D = 20_000, 32, 8, 128
    key, value = torch.randn(2, n, kv_heads, D, device="cuda").to(dtype)
    query = torch.randn(1, heads, D, device="cuda").to(dtype)
    order = torch.randperm(n // 16, device="cuda")
    caches = [torch.empty(n // 16, 16, kv_heads, D, dtype=dtype, device="cuda") for _ in range(2)]
    for cache, packed in zip(caches, (key, value), strict=True):
        cache[order] = packed.view(n // 16, 16, kv_heads, D)
    q, k, v = (t.float().transpose(0, 1)[None] for t in (query, key, value))
    expected = scaled_dot_product_attention(q, k, v, enable_gqa=True)[0].transpose(0, 1)
    lens = torch.tensor([n], dtype=torch.int32, device="cuda")
    for splits in (None, 1, 32):
        out = paged_attention(query, *caches, order[None].int(), lens, D**-0.5, num_splits=splits)
        # An average of 20,000 values is of size 0.01: an absolute tolerance would accept zeros.
        assert (out.float() - expected).norm() < 0.01 * expected.norm()


def test_the_engine_replays_its_decode_steps_and_gives_the_same_tokens(tmp_path):
    """Catches a step that cannot be recorded, stale buffers, padding that writes: lengths and batch change."""
    folder = random_llama(tmp_path / "model", byte_tokenizer=True)
    results = []
    for enforce_eager in (True, False):
        config = EngineConfig(
            str(folder), device="cuda", dtype="float32", num_blocks=256, enforce_eager=enforce_eager
        )
        engine = LLMEngine(config)
        assert (engine.runner.decode_steps is None) == enforce_eager
        for i in range(11):
            prompt = {"prompt_token_ids": list(range(3, 4 + 7 * i))}
            params = SamplingParams(temperature=0.0, max_tokens=5 + 4 * i, ignore_eos=True)
            engine.add_request(str(i), prompt, params)
        outputs = {}
        while engine.has_unfinished_requests():
            outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
        results.append(outputs)
    assert results[0] == results[1]
    assert engine.runner.decode_steps.num_replays > 30


def test_eight_prompts_give_the_tokens_of_transformers(tmp_path):
    """Catches a difference in the whole model on the device that is larger than float32's rounding."""
    folder = random_llama(
        tmp_path / "model", byte_tokenizer=True, hidden_size=256, head_dim=64, num_hidden_layers=4
    )
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to("cuda").eval()
    ours = LLM(str(folder), device="cuda", dtype="float32", num_blocks=256, max_num_seqs=8)
    prompts = [[3 + (7 * i * j + i) % 250 for j in range(5 + 11 * i)] for i in range(8)]
    params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
    outputs = ours.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 8  # not all the same
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt], device="cuda")
        lengths = {"min_new_tokens": 48, "max_new_tokens": 48, "do_sample": False, "pad_token_id": 0}
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **lengths)
        assert output.outputs[0].token_ids == expected[0, len(prompt) :].tolist()


def test_cpu_tensors_are_refused_with_the_way_out():
    """Catches Triton's own message, which speaks of pointers."""
    with pytest.raises(ValueError, match="Move them to cuda, or set TRITON_INTERPRET=1"):
        silu_and_mul(torch.zeros(2, 4))

"""The Llama forward pass against Hugging Face in float32, and paged runs against the whole prompt at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from minivllm.attention import AttentionBackend, AttentionMetadata, paged_attention_reference
from minivllm.backends.attention_kernels import NumbaAttention, TritonAttention
from minivllm.backends.attention_torch import TorchAttention
from minivllm.config import ModelConfig, RopeConfig
from minivllm.kernels.linear_cpu import KINDS, LinearKernel, TorchLinear, TransposedLinear
from minivllm.kv_cache import KVCache
from minivllm.layers import Build, Linear, RMSNorm, rope_inverse_frequencies
from minivllm.llama import LlamaForCausalLM
from tests.helpers_tensor import make_metadata, model_config, poison_

S = 4  # block size
VOCAB = 97
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
TOLERANCE = 1e-4

# Each with its own point: number of query heads, of KV heads, head_dim, and what else differs.
SHAPES: dict[str, dict[str, Any]] = {
    "MHA": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "GQA 3:1": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "MQA": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "head_dim not hidden / heads": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10},
    "tied embeddings": {"tie_word_embeddings": True},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "eps 1e-2": {"rms_norm_eps": 1e-2},
    "theta 500": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rope linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}},
    "rope llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


class ReferenceBackend:
    """Attention by the oracle: shows that a backend can be swapped, and where bugs can be put in."""

    name = "reference"

    def __init__(self, bug: str | None = None) -> None:
        self.bug = bug

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        return metadata

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: KVCache,
        layer: int,
        metadata: AttentionMetadata,
        scale: float,
    ) -> Tensor:
        kv_cache.write(layer, key, value, metadata.slot_mapping)
        if self.bug == "no scale":
            scale = 1.0
        elif self.bug == "mask off by one":  # each query sees the token after it, the last one a dead slot
            metadata = replace(metadata, seq_lens=metadata.seq_lens + 1)
        elif self.bug == "repeat instead of repeat_interleave":  # head h reads KV head h % Hkv
            order = torch.arange(query.shape[1]).view(-1, key.shape[1]).t().flatten()
            caches = kv_cache.key[layer], kv_cache.value[layer]
            output = paged_attention_reference(query[:, order], *caches, metadata, scale)
            return output[:, order.argsort()]
        return paged_attention_reference(query, kv_cache.key[layer], kv_cache.value[layer], metadata, scale)


def hugging_face_llama(seed: int = 0, **overrides: Any) -> transformers.LlamaForCausalLM:
    """A tiny random Llama. Weights of std 0.2 and not 0.02: attention must be far from uniform."""
    config = transformers.LlamaConfig(**{**SMALL, **overrides})
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + noise if "norm" in name else noise)
    return model


def config_of(model: transformers.LlamaForCausalLM) -> ModelConfig:
    """Our config of a Hugging Face model, field by field."""
    theirs = model.config
    rope = {key: value for key, value in theirs.rope_parameters.items() if key in RopeConfig.__annotations__}
    same = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias",
        "mlp_bias", "tie_word_embeddings",
    )  # fmt: skip
    return ModelConfig(**{name: getattr(theirs, name) for name in same}, rope=RopeConfig(**rope))


def empty_model(
    theirs: transformers.LlamaForCausalLM,
    backend: AttentionBackend | None = None,
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """Our model of their shape; pieces of 4 rows, so that a short prompt has several."""
    config = config_of(theirs)
    attention = backend or TorchAttention(config, S, dtype, "cpu", piece=4)
    return LlamaForCausalLM(config, attention, dtype)


def load(
    theirs: transformers.LlamaForCausalLM,
    backend: AttentionBackend | None = None,
    dtype: torch.dtype = torch.float32,
) -> LlamaForCausalLM:
    """The same with their weights."""
    model = empty_model(theirs, backend, dtype)
    model.load_weights(theirs.state_dict().items())
    return model


def tiny_build(dtype: torch.dtype = torch.float32) -> Build:
    """What single layers are made from."""
    return Build(model_config(), ReferenceBackend(), dtype, torch.device("cpu"))


class PagedRun:
    """Feeds sequences to a model step by step through a poisoned KV cache with shuffled blocks."""

    def __init__(self, model: LlamaForCausalLM, token_ids: list[Tensor], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model, self.token_ids, self.num_computed = model, token_ids, [0] * len(token_ids)
        needed = [-(-len(ids) // S) for ids in token_ids]
        dtype = model.model.embed_tokens.dtype
        self.kv_cache = KVCache(model.config, sum(needed) + 2, S, dtype, "cpu")
        for tensor in self.kv_cache.key + self.kv_cache.value:
            poison_(tensor, generator)
        free = torch.randperm(self.kv_cache.num_blocks, generator=generator).tolist()
        self.tables = [[free.pop() for _ in range(count)] for count in needed]
        self.logits: list[list[Tensor]] = [[] for _ in token_ids]

    def step(self, query_lens: dict[int, int], position_shift: int = 0) -> None:
        """Run the next `query_lens[sequence]` tokens of some sequences, in the dict's order, as one batch."""
        ends = {sequence: self.num_computed[sequence] + q for sequence, q in query_lens.items()}
        ids, positions = [], []
        for sequence, end in ends.items():
            ids.append(self.token_ids[sequence][self.num_computed[sequence] : end])
            positions.append(torch.arange(self.num_computed[sequence], end) + position_shift)
        tables = [self.tables[sequence] for sequence in query_lens]
        metadata = make_metadata(tables, list(ends.values()), list(query_lens.values()), S)
        with torch.inference_mode():
            hidden = self.model(torch.cat(ids), torch.cat(positions), self.kv_cache, metadata)
            logits = self.model.compute_logits(hidden)
        for (sequence, end), part in zip(ends.items(), logits.split(list(query_lens.values())), strict=True):
            self.logits[sequence].append(part)
            self.num_computed[sequence] = end

    def all_logits(self, sequence: int = 0) -> Tensor:
        """(n, V) of one sequence, all steps."""
        return torch.cat(self.logits[sequence])


def random_ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def hugging_face_logits(model: transformers.LlamaForCausalLM, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids[None]).logits[0]  # (n, V)


def assert_same_logits(actual: Tensor, expected: Tensor) -> None:
    """The one assertion on logits. They are of size 1, so 1e-4 is float noise and no bug is that small."""
    assert expected.std() > 0.5
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("overrides", SHAPES.values(), ids=SHAPES)
def test_logits_equal_hugging_face(overrides: dict[str, Any]):
    """Catches a field of the config that is ignored, and any error of the forward pass."""
    theirs = hugging_face_llama(**overrides)
    ids = random_ids(130)  # long enough for the slow frequencies to turn
    run = PagedRun(load(theirs), [ids])
    run.step({0: 100})
    for _ in range(3):
        run.step({0: 1})
    run.step({0: 27})
    assert_same_logits(run.all_logits(), hugging_face_logits(theirs, ids))


@pytest.mark.parametrize("overrides", SHAPES.values(), ids=SHAPES)
def test_every_shape_really_differs_from_the_default(overrides: dict[str, Any]):
    """Negative control: with the setting ignored, Hugging Face's own logits fail the same assertion.

    The biases are ignored by zeroing them, head counts cannot be ignored (the weights would not fit).
    """
    theirs = hugging_face_llama(**overrides)
    ids = random_ids(130)
    expected = hugging_face_logits(theirs, ids)
    if "rope_parameters" in overrides or "rms_norm_eps" in overrides:
        default = hugging_face_llama()
        default.load_state_dict(theirs.state_dict())
    else:
        default = theirs
        with torch.no_grad():
            for name, parameter in default.named_parameters():
                if name.endswith("bias") or "k_proj" in name:
                    parameter.zero_()
                if "embed_tokens" in name and overrides.get("tie_word_embeddings"):
                    parameter.copy_(parameter.roll(1, dims=0))
    with pytest.raises(AssertionError):
        assert_same_logits(hugging_face_logits(default, ids), expected)
    with pytest.raises(AssertionError):
        assert_same_logits(torch.zeros_like(expected), expected)


@pytest.mark.parametrize(
    ("bug", "rejected"),
    [
        (None, False),
        ("no scale", True),
        ("mask off by one", True),
        ("repeat instead of repeat_interleave", True),
    ],
)
def test_the_assertion_rejects_known_attention_bugs(bug: str | None, rejected: bool):
    """Negative control, inside the whole model: the oracle as backend passes, each bug in it does not."""
    theirs = hugging_face_llama()
    ids = random_ids(23)
    run = PagedRun(load(theirs, ReferenceBackend(bug)), [ids])
    run.step({0: 9})
    run.step({0: 14})
    expected = hugging_face_logits(theirs, ids)
    if rejected:
        with pytest.raises(AssertionError):
            assert_same_logits(run.all_logits(), expected)
    else:
        assert_same_logits(run.all_logits(), expected)


def test_the_assertion_rejects_a_decode_position_off_by_one():
    """Negative control of the bug that nano-vllm shipped. Shifting *all* positions would change nothing."""
    theirs = hugging_face_llama()
    ids = random_ids(12)
    run = PagedRun(load(theirs), [ids])
    run.step({0: 11})
    run.step({0: 1}, position_shift=1)
    expected = hugging_face_logits(theirs, ids)
    assert_same_logits(run.all_logits()[:11], expected[:11])
    with pytest.raises(AssertionError):
        assert_same_logits(run.all_logits()[11:], expected[11:])


@pytest.mark.parametrize("seed", range(6))
def test_any_split_into_steps_gives_the_logits_of_the_whole_prompt(seed: int):
    """Catches errors of chunked prefill and mixed batches: random chunks, random company, random blocks."""
    theirs = hugging_face_llama()
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (5,), generator=generator).tolist()
    token_ids = [random_ids(length, seed=index) for index, length in enumerate(lengths)]
    run = PagedRun(load(theirs), token_ids, seed)
    while any(computed < length for computed, length in zip(run.num_computed, lengths, strict=True)):
        step = {}
        for sequence in torch.randperm(len(lengths), generator=generator).tolist():
            left = lengths[sequence] - run.num_computed[sequence]
            chunk = min(left, [0, 1, 1, 5, 13][torch.randint(0, 5, (), generator=generator)])
            if chunk:
                step[sequence] = chunk
        if step:
            run.step(step)
    for sequence, ids in enumerate(token_ids):
        assert_same_logits(run.all_logits(sequence), hugging_face_logits(theirs, ids))


def test_a_sequence_reads_its_own_blocks():
    """Negative control of the test above: two exchanged block tables fail its assertion."""
    theirs = hugging_face_llama()
    token_ids = [random_ids(9, seed=0), random_ids(9, seed=1)]
    run = PagedRun(load(theirs), token_ids)
    run.step({0: 8, 1: 8})
    run.tables.reverse()
    run.step({0: 1, 1: 1})
    for sequence, ids in enumerate(token_ids):
        expected = hugging_face_logits(theirs, ids)
        assert_same_logits(run.all_logits(sequence)[:8], expected[:8])
        with pytest.raises(AssertionError):
            assert_same_logits(run.all_logits(sequence)[8:], expected[8:])


def test_llama3_frequencies_equal_hugging_face_in_all_three_bands():
    """Catches a wrong band limit; 64 pairs put several into each of kept, blended and slowed down."""
    theirs = hugging_face_llama(head_dim=128, **SHAPES["rope llama3"])
    rope = config_of(theirs).rope
    actual = rope_inverse_frequencies(rope, 128)
    plain = rope_inverse_frequencies(RopeConfig(rope_theta=rope.rope_theta), 128)
    kept = torch.isclose(actual, plain, rtol=1e-6)
    slowed = torch.isclose(actual, plain / rope.factor, rtol=1e-6)
    assert min(kept.sum(), slowed.sum(), (~kept & ~slowed).sum()) >= 3
    torch.testing.assert_close(actual, theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)
    for wrong in (plain, plain / rope.factor):  # negative control: two simpler formulas
        with pytest.raises(AssertionError):
            torch.testing.assert_close(wrong, theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_hugging_face_in_the_same_precision(dtype: torch.dtype):
    """Catches a norm or a softmax in half precision: no further from float32 than 1.5 times theirs."""
    theirs = hugging_face_llama(num_hidden_layers=2)
    ids = random_ids(40)
    exact = hugging_face_logits(theirs, ids)
    halved = theirs.to(dtype)
    their_error = (hugging_face_logits(halved, ids).float() - exact).square().mean().sqrt()
    run = PagedRun(load(halved, dtype=dtype), [ids])
    run.step({0: 33})
    run.step({0: 1})
    run.step({0: 6})
    logits = run.all_logits()
    assert logits.dtype == torch.float32
    assert (logits - exact).square().mean().sqrt() < 1.5 * their_error
    assert exact.square().mean().sqrt() > 10 * their_error  # negative control: zeros would not do


def test_bfloat16_with_the_numba_kernels_rounds_weights_and_cache_and_little_else():
    """Catches sums in bfloat16: nearer to float32 with rounded weights than Hugging Face in bfloat16 is."""
    theirs = hugging_face_llama(num_hidden_layers=2)
    ids = random_ids(40)
    halved = theirs.to(torch.bfloat16)
    their_logits = hugging_face_logits(halved, ids).float()
    exact = hugging_face_logits(halved.float(), ids)  # the same weights, rounded and wide again
    their_error = (their_logits - exact).square().mean().sqrt()
    attention = NumbaAttention(config_of(theirs), S, torch.bfloat16, "cpu")
    run = PagedRun(load(halved, attention, torch.bfloat16), [ids])
    run.step({0: 33})
    run.step({0: 1})
    run.step({0: 6})
    logits = run.all_logits()
    assert logits.dtype == torch.float32
    error = (logits - exact).square().mean().sqrt()
    assert 0 < error < their_error
    assert exact.square().mean().sqrt() > 10 * their_error  # negative control: zeros would not do


def test_rms_norm_survives_numbers_whose_squares_overflow_half_precision():
    """Catches squares summed in float16: 300 squared is above its largest number, 65,504."""
    norm = RMSNorm(tiny_build(torch.float16))
    norm.weight.fill_(1.0)
    x = torch.full((2, norm.weight.shape[0]), 300.0, dtype=torch.float16)
    zeros = torch.zeros_like(x)
    normed, total = norm(x, zeros)
    torch.testing.assert_close(normed, torch.ones_like(x), rtol=0, atol=1e-3)
    assert torch.equal(total, x)
    assert torch.equal(norm(zeros, zeros)[0], zeros)


def test_nbytes_counts_each_weight_once():
    """Catches tied embeddings counted twice where they are one, and once where packing made them two."""
    for tied in (True, False):
        theirs = hugging_face_llama(tie_word_embeddings=tied)
        expected = sum(parameter.nbytes for parameter in theirs.parameters())
        model = empty_model(theirs)
        assert model.nbytes == expected
        model.load_weights(theirs.state_dict().items())
        assert model.nbytes == expected
        model.lm_head.pack(TransposedLinear)
        if tied:
            expected += theirs.model.embed_tokens.weight.nbytes
        assert model.nbytes == expected


def test_the_numba_kernels_give_the_same_logits():
    """Catches a kernel wired in with exchanged arguments, below and above the 64 rows where PyTorch takes over."""
    theirs = hugging_face_llama(attention_bias=True, mlp_bias=True)
    token_ids = [random_ids(90, seed=0), random_ids(80, seed=1)]
    model = load(theirs, NumbaAttention(config_of(theirs), S, torch.float32, "cpu"))
    run = PagedRun(model, token_ids)
    run.step({0: 65})
    run.step({0: 1, 1: 63})
    run.step({1: 1, 0: 1})
    run.step({0: 23, 1: 16})
    for sequence, ids in enumerate(token_ids):
        assert_same_logits(run.all_logits(sequence), hugging_face_logits(theirs, ids))
    kernels = {type(module).__name__ for module in model.modules()}
    assert kernels >= {"NumbaRMSNorm", "NumbaRotaryEmbedding"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_product_gives_the_same_logits(kind: type[LinearKernel], monkeypatch: pytest.MonkeyPatch):
    """Catches a layer left out of the packing, or packed before its weights had come."""
    monkeypatch.setattr("minivllm.backends.linears.choose_linear_kernel", lambda weights, memory: kind)
    theirs = hugging_face_llama(attention_bias=True, tie_word_embeddings=True)
    model = load(theirs)
    assert model.linear_kernel == kind.name
    assert {type(m.kernel) for m in model.modules() if isinstance(m, Linear)} == {kind}
    ids = random_ids(30)
    run = PagedRun(model, [ids])
    run.step({0: 29})
    run.step({0: 1})
    assert_same_logits(run.all_logits(), hugging_face_logits(theirs, ids))


def test_a_packed_layer_keeps_the_shape_of_its_weight_and_gives_its_memory_back():
    """Catches weights held twice: a model that would fill half of the memory fills all of it."""
    linear = Linear(tiny_build(), 8, 6)
    linear.weight.fill_(1.0)
    linear.pack(TorchLinear)
    assert linear.weight.untyped_storage().nbytes() == 6 * 8 * 4
    linear.pack(TransposedLinear)
    assert linear.weight.shape == (6, 8)
    assert linear.weight.untyped_storage().nbytes() == 4
    assert torch.equal(linear(torch.ones(2, 8)), torch.full((2, 6), 8.0))


def test_the_triton_kernels_give_the_same_logits():
    """Catches a kernel wired in with exchanged arguments: prefill, mixed batch, decode, on a tiny model."""
    theirs = hugging_face_llama(num_hidden_layers=1, attention_bias=True, mlp_bias=True)
    token_ids = [random_ids(7, seed=0), random_ids(6, seed=1)]
    model = load(theirs, TritonAttention())
    run = PagedRun(model, token_ids)
    run.step({0: 6})
    run.step({1: 5, 0: 1})
    run.step({1: 1})
    for sequence, ids in enumerate(token_ids):
        assert_same_logits(run.all_logits(sequence), hugging_face_logits(theirs, ids))
    kernels = {type(module).__name__ for module in model.modules()}
    assert kernels >= {"TritonRMSNorm", "TritonRotaryEmbedding"}


def test_a_missing_weight_is_named():
    """Catches a model that runs with uninitialised memory for one projection."""
    theirs = hugging_face_llama()
    weights = dict(theirs.state_dict())
    del weights["model.layers.1.self_attn.k_proj.weight"], weights["lm_head.weight"]
    with pytest.raises(ValueError, match=r"lm_head\.weight.*model\.layers\.1\.self_attn\.k_proj\.weight"):
        empty_model(theirs).load_weights(weights.items())


def test_an_unexpected_weight_is_named():
    """Catches a bias that the config does not mention being dropped: the text would be wrong, silently."""
    weights = hugging_face_llama(attention_bias=True).state_dict()
    with pytest.raises(ValueError, match=r"unexpected.*model\.layers\.0\.self_attn\.k_proj\.bias"):
        empty_model(hugging_face_llama()).load_weights(weights.items())


def test_a_weight_given_twice_is_refused():
    """Catches two shards of different checkpoints mixed in one folder."""
    theirs = hugging_face_llama()
    weights = [*theirs.state_dict().items(), ("model.norm.weight", theirs.model.norm.weight)]
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        empty_model(theirs).load_weights(weights)


def test_a_wrong_shape_is_named_with_both_shapes():
    """Catches `copy_` broadcasting a (1, hidden) weight over all rows."""
    theirs = hugging_face_llama()
    weights = {**theirs.state_dict(), "model.layers.2.mlp.down_proj.weight": torch.zeros(1, 80)}
    with pytest.raises(ValueError, match=r"down_proj\.weight.*\(1, 80\).*\(48, 80\)"):
        empty_model(theirs).load_weights(weights.items())


def test_a_model_takes_its_weights_once():
    """Catches a second checkpoint written over weights that are packed away and no longer read."""
    theirs = hugging_face_llama()
    model = load(theirs)
    with pytest.raises(ValueError, match="has its weights already"):
        model.load_weights(theirs.state_dict().items())


def test_old_checkpoints_with_stored_rope_frequencies_load():
    """Catches a refusal of the `rotary_emb.inv_freq` buffers that Llama 2 checkpoints carry."""
    theirs = hugging_face_llama()
    stored = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    model = empty_model(theirs)
    model.load_weights({**theirs.state_dict(), **stored}.items())
    ids = random_ids(9)
    run = PagedRun(model, [ids])
    run.step({0: 9})
    assert_same_logits(run.all_logits(), hugging_face_logits(theirs, ids))


def test_nothing_of_the_model_asks_for_gradients():
    """Catches a KV cache that drags an autograd graph through every step outside of inference_mode."""
    theirs = hugging_face_llama()
    model = load(theirs)
    ids = random_ids(5)
    kv_cache = KVCache(model.config, 4, S, torch.float32, "cpu")
    hidden = model(ids, torch.arange(5), kv_cache, make_metadata([[2, 0]], [5], [5], S))
    assert not hidden.requires_grad
    assert not kv_cache.key[0].requires_grad

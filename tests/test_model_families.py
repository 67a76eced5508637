"""Llama's relatives against Hugging Face: Qwen3 (QK-norm), Qwen2 (QKV bias), Mistral (a sliding window).

The folders are written by `transformers` itself, with its own config classes, so that what is compared includes
the names of the weights and the meaning of `config.json`.
"""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from minivllm import SamplingParams
from minivllm.backends.attention_torch import TorchAttention
from minivllm.qwen3 import Qwen3Attention
from minivllm.weights.loader import load_model, load_model_config
from minivllm.weights.random_model import CONFIG, FAMILIES, random_llama
from minivllm.weights.registry import MODELS
from tests.test_llama import SMALL, PagedRun

S, TOLERANCE = 4, 1e-4
SHAPES = {
    "Qwen3": ("Qwen3", {}),  # head_dim absent: 128, not 48 / 6
    "Qwen3, heads of 10, MQA": (
        "Qwen3",
        {"head_dim": 10, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "Qwen3, tied, eps 1e-2": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    "Qwen3, attention_bias": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "Qwen2": ("Qwen2", {}),
    "Qwen2, tied, GQA 3:1": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 2}),
    "Mistral, no window": ("Mistral", {"sliding_window": None}),
    "Mistral, a window of 64": ("Mistral", {"head_dim": 12, "sliding_window": 64}),
}


def write_model(folder, family, **overrides):
    """A random model of `transformers`, and its folder. Its weights are wide, so that attention is far from flat."""
    config = getattr(transformers, f"{family}Config")(**SMALL | overrides)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + noise if "norm" in name else noise)
    model.save_pretrained(folder)
    return model


def paged_logits(folder, ids):
    """(n, V) by our model: two prefill chunks, then one token at a time, through shuffled blocks."""
    attention = TorchAttention(load_model_config(folder), S, torch.float32, "cpu", piece=4)
    run = PagedRun(load_model(folder, attention, torch.float32, "cpu"), [ids])
    for count in (9, len(ids) - 14, *[1] * 5):
        run.step({0: count})
    return run.all_logits()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_hugging_face(tmp_path, name):
    """Would catch a bias left out, a norm over all heads at once, a head_dim derived where it is given."""
    theirs = write_model(tmp_path, SHAPES[name][0], **SHAPES[name][1])
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert_close(paged_logits(tmp_path, ids), expected)
    with pytest.raises(AssertionError):
        assert_close(torch.zeros_like(expected), expected)


def no_norm(self, query_key):
    return query_key


def one_norm(self, query_key):
    return self.q_norm.normalize(query_key)


def norm_over_all_heads(self, query_key):
    counts = torch.tensor([self.num_heads, self.num_kv_heads])
    weight = torch.stack([self.q_norm.weight, self.k_norm.weight]).repeat_interleave(counts, dim=0)
    return query_key * query_key.square().mean(dim=(1, 2), keepdim=True).add(1e-6).rsqrt() * weight


@pytest.mark.parametrize("bug", [no_norm, one_norm, norm_over_all_heads])
def test_the_assertion_rejects_other_norms(tmp_path, monkeypatch, bug):
    """Negative control: a Llama, a Qwen3 with one norm for both, and one norm for all heads together."""
    theirs = write_model(tmp_path, "Qwen3", head_dim=16)
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    monkeypatch.setattr(Qwen3Attention, "normalize_heads", bug)
    with pytest.raises(AssertionError):
        assert_close(paged_logits(tmp_path, ids), expected)


def test_the_assertion_rejects_a_norm_after_the_rotation(tmp_path, monkeypatch):
    """Negative control: the order matters because the norm's weight differs within a rotated pair."""
    theirs = write_model(tmp_path, "Qwen3", head_dim=16)
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    before = Qwen3Attention.__init__
    norm_heads = Qwen3Attention.normalize_heads

    def swapped(self, build, layer):
        before(self, build, layer)
        rotate = self.rotate
        self.rotate = lambda heads, *rotation: norm_heads(self, rotate(heads, *rotation))

    monkeypatch.setattr(Qwen3Attention, "__init__", swapped)
    monkeypatch.setattr(Qwen3Attention, "normalize_heads", no_norm)
    with pytest.raises(AssertionError):
        assert_close(paged_logits(tmp_path, ids), expected)


def test_a_sliding_window_ends_the_sequence_where_it_would_begin_to_hide(tmp_path):
    """Would catch a window ignored. Up to 16 tokens it hides nothing; the control shows what comes behind."""
    theirs = write_model(tmp_path, "Mistral", sliding_window=16)
    assert load_model_config(tmp_path).max_position_embeddings == 16
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
    assert_close(paged_logits(tmp_path, ids[:16]), expected[:16])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": None}))
    with pytest.raises(AssertionError):  # a window that is ignored
        assert_close(paged_logits(tmp_path, ids)[16:], expected[16:])


@pytest.mark.parametrize(("family", "used"), [("Qwen2", False), ("Qwen3", False), ("Qwen2", True)])
def test_qwens_window_counts_only_if_it_is_used(tmp_path, family, used):
    """Would catch a Qwen2.5 cut to the 4,096 tokens of a window that its file names and switches off."""
    raw = {**SMALL, "model_type": family.lower(), "use_sliding_window": used, "sliding_window": 32}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_model_config(tmp_path).max_position_embeddings == (32 if used else 256)


@pytest.mark.parametrize("name", sorted({entry.model_type for entry in MODELS.values()}))
def test_what_a_file_leaves_out_is_what_transformers_takes_it_to_be(tmp_path, name):
    """Would catch Llama's default for a Mistral without num_key_value_heads (32 for 8)."""
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    raw = {key: SMALL[key] for key in kept} | {
        "num_attention_heads": 32,
        "hidden_size": 64,
        "model_type": name,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs, ours = transformers.AutoConfig.from_pretrained(tmp_path), load_model_config(tmp_path)
    for key in ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 2)
    window = getattr(theirs, "sliding_window", None) or theirs.max_position_embeddings
    assert ours.max_position_embeddings == min(window, theirs.max_position_embeddings)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_the_engine_under_pressure_gives_hugging_faces_greedy_tokens(tmp_path, make_engine, family):
    """Would catch keys cached before their norm: here they are computed again, shared, and read from chunks."""
    folder = random_llama(tmp_path, **FAMILIES[family], sliding_window=None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompts = [list(b"one prompt, " * 2 + text) for text in (b"a", b"bc", b"def", b"ghij")]
    engine = make_engine(
        folder, skip_tokenizer_init=True, num_blocks=24, max_num_batched_tokens=20, max_num_seqs=4,
        attention_backend="auto" if family == "qwen3" else "torch",
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    for index, prompt in enumerate(prompts):
        ids = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert done[str(index)] == ids[0, len(prompt) :].tolist()
    assert engine.stats().num_preemptions > 0
    assert engine.stats().prefix_cache_hits > 0


def test_random_models_of_all_families_have_what_their_family_has(tmp_path):
    """Would catch a random Qwen3 without QK-norm, which `load_weights` would refuse, and a biased output."""
    assert "sliding_window" in CONFIG
    for family, has in (("llama", ""), ("qwen2", "k_proj.bias"), ("qwen3", "q_norm"), ("mistral", "")):
        folder = random_llama(tmp_path / family, **FAMILIES[family])
        names = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)[1]
        assert not names["missing_keys"], family
        assert not names["unexpected_keys"], family
        found = load_file(folder / "model.safetensors")
        assert not has or any(has in name for name in found)
        assert not any("o_proj.bias" in name for name in found)

"""A dozen published model folders, rebuilt small: their real `config.json` and `generation_config.json` keys.

The sizes are shrunk; every other key is as the authors published it, old or new style, with the remains of
the program which wrote it. transformers reads the same files and is the oracle.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from minivllm.attention import AttentionMetadata
from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.kv_cache import KVCache
from minivllm.sampling_params import SamplingParams
from minivllm.weights.generation_config import SAMPLING_KEYS, default_sampling_params
from minivllm.weights.loader import load_model, load_model_config, random_llama
from minivllm.weights.registry import MODELS, architecture_named

# What every one of them has; `random_llama` draws the weights for it.
SMALL = {"vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "use_cache": True,
         "initializer_range": 0.02, **SMALL}  # fmt: skip
ROPE_31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192, "rope_type": "llama3"}  # fmt: skip

PUBLISHED = {
    # The first conversions: an alias, ids that no tokenizer has today, a padding id of -1, no KV heads.
    "llama-1": (
        LLAMA | {"architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1,
                 "max_sequence_length": 2048, "num_attention_heads": 4, "rms_norm_eps": 1e-06,
                 "torch_dtype": "float16", "transformers_version": "4.27.0.dev0"},
        {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    ),
    "llama-2-chat": (
        LLAMA | {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096, "num_attention_heads": 4,
                 "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
                 "tie_word_embeddings": False, "torch_dtype": "float16"},
        {"bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "pad_token_id": 0, "temperature": 0.6,
         "max_length": 4096, "top_p": 0.9, "transformers_version": "4.32.0.dev0"},
    ),
    "vicuna-1.5": (
        LLAMA | {"_name_or_path": "vicuna-7b-v1.5", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
                 "max_position_embeddings": 4096, "num_attention_heads": 4, "num_key_value_heads": 4,
                 "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None},
        {"_from_model_config": True, "bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "pad_token_id": 0,
         "temperature": 0.9, "top_p": 0.6},
    ),
    "vicuna-1.5-16k": (
        LLAMA | {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096, "max_sequence_length": 16384,
                 "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-05,
                 "rope_scaling": {"factor": 4.0, "type": "linear"}},
        {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9, "top_p": 0.6},
    ),
    "codellama": (
        LLAMA | {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16384, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
                 "rope_theta": 1000000, "tie_word_embeddings": False, "torch_dtype": "bfloat16"},
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "yi-1.5-chat": (
        LLAMA | {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
                 "max_position_embeddings": 4096, "num_attention_heads": 4, "num_key_value_heads": 1,
                 "pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_theta": 5000000.0, "pretraining_tp": 1},
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0, "do_sample": True,
         "temperature": 0.3, "top_k": 40, "top_p": 0.8},
    ),
    "tinyllama-chat": (
        LLAMA | {"attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 2048,
                 "num_attention_heads": 8, "num_key_value_heads": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
                 "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "bfloat16"},
        {"bos_token_id": 1, "eos_token_id": 2, "max_length": 2048, "pad_token_id": 0},
    ),
    "smollm2-instruct": (
        LLAMA | {"attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "is_llama_config": True,
                 "max_position_embeddings": 8192, "mlp_bias": False, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "pad_token_id": 2, "rms_norm_eps": 1e-05, "rope_interleaved": False,
                 "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
                 "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}},
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    ),
    "llama-3-instruct": (
        LLAMA | {"attention_bias": False, "bos_token_id": 250, "eos_token_id": 251, "max_position_embeddings": 8192,
                 "num_attention_heads": 4, "num_key_value_heads": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
                 "rope_scaling": None, "rope_theta": 500000.0, "torch_dtype": "bfloat16"},
        {"bos_token_id": 250, "eos_token_id": [251, 252], "do_sample": True, "temperature": 0.6,
         "max_length": 4096, "top_p": 0.9},
    ),
    "llama-3.1-instruct": (
        LLAMA | {"attention_bias": False, "bos_token_id": 250, "eos_token_id": [251, 252, 253],
                 "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 4,
                 "num_key_value_heads": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": ROPE_31,
                 "rope_theta": 500000.0, "tie_word_embeddings": False},
        {"bos_token_id": 250, "do_sample": True, "eos_token_id": [251, 252, 253], "temperature": 0.6, "top_p": 0.9},
    ),
    "llama-3.2-instruct": (
        LLAMA | {"attention_bias": False, "bos_token_id": 250, "eos_token_id": [251, 252, 253], "head_dim": 32,
                 "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_scaling": ROPE_31 | {"factor": 32.0},
                 "rope_theta": 500000.0, "tie_word_embeddings": True},
        {"bos_token_id": 250, "do_sample": True, "eos_token_id": [251, 252, 253], "temperature": 0.6, "top_p": 0.9},
    ),
    "deepseek-r1-distill-llama": (
        LLAMA | {"attention_bias": False, "bos_token_id": 250, "eos_token_id": 251, "head_dim": 16,
                 "max_position_embeddings": 131072, "mlp_bias": False, "num_attention_heads": 4,
                 "num_key_value_heads": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": ROPE_31,
                 "rope_theta": 500000.0},
        {"_from_model_config": True, "bos_token_id": 250, "eos_token_id": 251, "do_sample": True,
         "temperature": 0.6, "top_p": 0.95},
    ),
    # As transformers 5 saves it, and with biases.
    "saved-by-transformers-5": (
        LLAMA | {"attention_bias": True, "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32", "head_dim": 16,
                 "max_position_embeddings": 4096, "mlp_bias": True, "num_attention_heads": 4,
                 "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "pad_token_id": None,
                 "rope_parameters": ROPE_31 | {"rope_theta": 500000.0}, "transformers_version": "5.23.0"},
        {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0,
         "repetition_penalty": 1.05, "max_new_tokens": 512, "do_sample": True, "output_attentions": False},
    ),
}  # fmt: skip


def write_folder(folder, name):
    """The published config over random weights of its shapes."""
    raw, generation = PUBLISHED[name]
    heads = raw["num_attention_heads"]
    shape = {
        **{key: raw[key] for key in SMALL},
        "num_attention_heads": heads,
        "num_key_value_heads": raw.get("num_key_value_heads", heads),
        "head_dim": raw.get("head_dim", raw["hidden_size"] // heads),
    }
    flags = ("tie_word_embeddings", "attention_bias", "mlp_bias")
    random_llama(folder, **shape, **{flag: raw.get(flag, False) for flag in flags})
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def last_logits(folder, ids):
    """Logits after the prompt `ids`, (V,), by minivllm."""
    config = load_model_config(folder)
    attention = make_attention_backend("torch", config, 16, torch.float32, "cpu")
    model = load_model(folder, attention, torch.float32, "cpu")
    kv_cache, positions = KVCache(config, 4, 16, torch.float32, "cpu"), torch.arange(len(ids))
    metadata = AttentionMetadata(
        slot_mapping=positions,
        block_tables=torch.arange(4, dtype=torch.int32)[None],
        seq_lens=torch.tensor([len(ids)], dtype=torch.int32),
        query_start_loc=torch.tensor([0, len(ids)], dtype=torch.int32),
        max_query_len=len(ids),
        max_seq_len=len(ids),
    )
    return model.compute_logits(model(ids, positions, kv_cache, metadata)[-1:])[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder_computes_what_transformers_computes(tmp_path, name):
    """Would catch a key of some years' style that is not read: another theta, factor, epsilon or head size."""
    folder = write_folder(tmp_path, name)
    ids = torch.randint(0, 258, (40,), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(ids[None]).logits[0, -1]
        torch.testing.assert_close(last_logits(folder, ids), expected, rtol=1e-4, atol=1e-4)
        # The control: a theta twice as large is far outside of the tolerance.
        raw = json.loads((folder / "config.json").read_text())
        rope = raw.get("rope_parameters", raw)
        rope["rope_theta"] = 2 * rope.get("rope_theta", 1e4)
        (folder / "config.json").write_text(json.dumps(raw))
        assert (last_logits(folder, ids) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder_ends_and_samples_as_transformers_reads_it(tmp_path, name):
    """Would catch an end of turn that is not one here, and a recommended temperature that is lost."""
    folder = write_folder(tmp_path, name)
    theirs = GenerationConfig.from_pretrained(folder)
    eos = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    assert list(load_model_config(folder).eos_token_ids) == eos
    ours = default_sampling_params(folder)
    for key, field in SAMPLING_KEYS.items():
        value = getattr(theirs, key)
        assert getattr(ours, field) == (getattr(SamplingParams(), field) if value is None else value), key


def test_without_generation_config_the_defaults_are_vllms(tmp_path):
    """Would catch an absent file taken for an error, and null for a value."""
    assert default_sampling_params(tmp_path) == SamplingParams()
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": null, "top_k": null, "do_sample": false}'
    )
    assert default_sampling_params(tmp_path) == SamplingParams()


@pytest.mark.parametrize("name", ["gemma", "phi3", "mixtral", "olmo2"])
def test_a_relative_of_llama_is_refused_by_name(tmp_path, name):
    """Would catch a Mixtral run as a Llama as far as its weights have the same names."""
    architecture = f"{name.capitalize()}ForCausalLM"
    raw = PUBLISHED["llama-2-chat"][0] | {"architectures": [architecture], "model_type": name}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=f"{architecture} is not supported; known: LlamaForCausalLM, LLaMAF"):
        load_model_config(tmp_path)


def test_the_old_spelling_and_swish_are_the_same_model(tmp_path):
    """Would catch the refusal of an alias: transformers and vLLM take both."""
    folder = write_folder(tmp_path, "llama-2-chat")
    before = load_model_config(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"architectures": ["LLaMAForCausalLM"], "hidden_act": "swish"}
    (folder / "config.json").write_text(json.dumps(raw))
    after = load_model_config(folder)
    assert replace(after, architecture=before.architecture) == before
    assert architecture_named(after.architecture) is architecture_named(before.architecture)


def test_the_registry_is_consistent():
    """Would catch a table entry without what the engine asks for."""
    for cls in {entry.cls for entry in MODELS.values()}:
        for name in ("nbytes", "forward", "compute_logits", "load_weights"):
            assert callable(getattr(cls, name)) or isinstance(getattr(cls, name), property), (cls, name)
    with pytest.raises(ValueError, match="LlamaForCausalLm is not supported; known: LlamaForCausalLM"):
        architecture_named("LlamaForCausalLm")


def test_weights_without_the_model_prefix_load(tmp_path):
    """Would catch the refusal of a checkpoint saved from the bare network, as transformers' LlamaModel is."""
    folder = write_folder(tmp_path, "smollm2-instruct")
    ids = torch.arange(20)
    before = last_logits(folder, ids)
    path = folder / "model.safetensors"
    save_file({name.removeprefix("model."): weight for name, weight in load_file(path).items()}, path)
    assert not any(name.startswith("model.") for name in load_file(path))
    assert torch.equal(last_logits(folder, ids), before)
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info


def test_one_weight_under_two_names_is_refused(tmp_path):
    """Would catch one of two different tensors dropped in silence."""
    path = random_llama(tmp_path) / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"norm.weight": weights["model.norm.weight"] + 1}, path)
    with pytest.raises(ValueError, match=r"model\.norm\.weight is stored twice: in .*model\.safetensors"):
        last_logits(tmp_path, torch.arange(3))


@pytest.mark.parametrize("name", ["self_attn.rotary_emb.inv_freq", "self_attn.rotary_emb.cos_cached",
                                  "self_attn.rotary_emb.sin_cached", "self_attn.rotary_emb.original_inv_freq",
                                  "self_attn.bias", "self_attn.masked_bias"])  # fmt: skip
def test_what_the_config_implies_may_lie_beside_the_weights(tmp_path, name):
    """Would catch an "unexpected weight" for a buffer; integer masks are no quantized weights either."""
    folder = write_folder(tmp_path, "llama-2-chat")
    before = last_logits(folder, torch.arange(20))
    path = folder / "model.safetensors"
    save_file(load_file(path) | {f"model.layers.0.{name}": torch.ones(8, dtype=torch.uint8)}, path)
    assert torch.equal(last_logits(folder, torch.arange(20)), before)


def test_a_tensor_that_nothing_implies_is_not_left_out(tmp_path):
    """Negative control: a bias that the config does not mention would change the mathematics."""
    path = random_llama(tmp_path) / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, path)
    with pytest.raises(ValueError, match=r"unexpected model\.layers\.0\.self_attn\.q_proj\.bias"):
        last_logits(tmp_path, torch.arange(3))

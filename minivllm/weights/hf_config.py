"""`config.json` -> `ModelConfig`.

Why it exists: `config.json` is written by many programs in several styles, and a key that is read wrongly
does not crash, it gives fluent nonsense. So this file translates what it knows into the strict
`ModelConfig`, and refuses by name what would change the mathematics::

    config.json (transformers 4)                          ModelConfig
      "rope_theta": 500000.0,                               rope=RopeConfig(rope_theta=500000.0,
      "rope_scaling": {"rope_type": "llama3", ...}                          rope_type="llama3", ...)
    config.json (transformers 5)
      "rope_parameters": {"rope_theta": ..., ...}           the same

    "rope_scaling": {"type": "yarn", ...}                 ValueError: .../config.json: rope scaling type ...

The two configs check types and ranges themselves; here the file's name is put in front of their errors.

vLLM V1: `vllm/transformers_utils/config.py`; transformers: `models/llama/configuration_llama.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minivllm.config import ModelConfig, RopeConfig, require_int
from minivllm.weights.files import START_AGAIN, read_json
from minivllm.weights.generation_config import eos_token_ids
from minivllm.weights.registry import architecture_named, architecture_of

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
# No size of a model is near this; the largest are the 4 million positions to which some Llamas have been
# stretched. Several sizes become tables before a weight can contradict them.
LARGEST_SIZE = 1 << 23


def load_model_config(folder: Path) -> ModelConfig:
    """Read `config.json` (and the eos ids of `generation_config.json`) into a `ModelConfig`.

    A key that is absent has the value that the config class of `transformers` for this architecture gives
    it, except for the sizes, which must be there.

    Raises:
        ValueError: a file is absent or broken, a value has the wrong type or is out of range, or the model is
            not a plain Llama. The text names the file.
    """
    path = folder / "config.json"
    raw = read_json(path)
    eos = eos_token_ids(raw, folder)
    try:
        return translate(raw, eos)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error} {START_AGAIN}") from error


def translate(raw: dict[str, Any], eos: tuple[int, ...]) -> ModelConfig:
    """The content of `config.json` as a `ModelConfig`; see `load_model_config`."""
    architecture = architecture_of(raw)
    entry = architecture_named(architecture)
    raw = entry.absent | raw | entry.fixed
    refuse_other_mathematics(raw)
    for key in SIZES:
        if key not in raw:
            raise ValueError(f"{key} is missing, without which no model can be built.")
        require_int(key, raw[key], minimum=1)
    # Files from before grouped-query attention lack num_key_value_heads, and many lack head_dim: each query
    # head then has its own KV head, and the heads split hidden_size evenly. Both keys may also be null.
    heads = raw["num_attention_heads"]
    kv_heads, head_dim = raw.get("num_key_value_heads"), raw.get("head_dim")
    config = ModelConfig(
        **{key: raw[key] for key in SIZES},
        num_key_value_heads=heads if kv_heads is None else kv_heads,
        head_dim=raw["hidden_size"] // heads if head_dim is None else head_dim,
        max_position_embeddings=longest_sequence(raw),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope=rope_config(raw),
        attention_bias=raw.get("attention_bias", False),
        qkv_bias=raw.get("qkv_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        eos_token_ids=eos,
        architecture=architecture,
    )
    sizes = vars(config) | vars(config.rope) | {"num_attention_heads * head_dim": heads * config.head_dim}
    for name, size in sizes.items():
        if isinstance(size, int) and size > LARGEST_SIZE:
            raise ValueError(f"{name} is above {LARGEST_SIZE}, which no model reaches.")
    return config


def refuse_other_mathematics(raw: dict[str, Any]) -> None:
    """Raise a ValueError, naming the key, if the model computes something else than a plain Llama.

    Such a model would load without complaint otherwise: a GPTQ checkpoint has tensors that only look odd.
    Unknown rope types are refused by `RopeConfig`.
    """
    rope = rope_settings(raw)
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        # Newer architectures nest one set per kind of layer. Read as a single set it would mean the defaults.
        raise ValueError(f"expected one set of rope settings, got {str(rope)[:80]}.")
    for key, value, allowed in (
        ("hidden_act", raw.get("hidden_act", "silu"), ("silu", "swish")),  # one function, two names
        ("pretraining_tp", raw.get("pretraining_tp"), (None, 1)),
        ("quantization_config", raw.get("quantization_config"), (None,)),
        ("partial_rotary_factor", raw.get("partial_rotary_factor"), (None, 1)),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), (None, 1)),
    ):
        if value not in allowed:
            raise ValueError(
                f"{key} = {json.dumps(value)[:80]} changes what the model computes; "
                f"supported: {' or '.join(json.dumps(choice) for choice in allowed)}."
            )


def longest_sequence(raw: dict[str, Any]) -> int:
    """Tokens up to which the model is computed rightly here.

    In a layer with a sliding window of W, a token sees itself and the W - 1 tokens before it. This engine has
    no such mask; but up to W tokens the window hides nothing, so a model with one is run up to there.
    """
    longest = raw.get("max_position_embeddings", 2048)
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    if window is None:
        return longest
    require_int("sliding_window", window, minimum=1)
    return min(longest, window)


def rope_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """The dict that says how RoPE is scaled, under its old or its new name (the old one wins, as in HF)."""
    return raw.get("rope_scaling") or raw.get("rope_parameters") or {}


def rope_config(raw: dict[str, Any]) -> RopeConfig:
    """Translate `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (5).

    Example: `{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}` and
    `{"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2}}` mean the same. A factor
    that a type needs has no default here: a guess would give fluent text that is wrong far into a prompt.
    """
    rope = rope_settings(raw)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    settings = {"rope_theta": rope.get("rope_theta", raw.get("rope_theta", 10000.0)), "rope_type": rope_type}
    needed = ("factor", "low_freq_factor", "high_freq_factor") if rope_type == "llama3" else ("factor",)
    for key in needed if rope_type in ("linear", "llama3") else ():
        if rope.get(key) is None:
            raise ValueError(f"rope scaling type {rope_type!r} needs {key}, got {str(rope)[:200]}.")
        settings[key] = rope[key]
    if rope_type == "llama3":
        # The length the model was trained on, before its reach was stretched by `factor`.
        trained = rope.get("original_max_position_embeddings", raw.get("max_position_embeddings", 2048))
        settings["original_max_position_embeddings"] = raw.get("original_max_position_embeddings", trained)
    return RopeConfig(**settings)

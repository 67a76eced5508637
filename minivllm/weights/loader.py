"""A folder in Hugging Face format -> config, weights, model, tokenizer.

Why it exists: `config.json` is written by many programs in several styles, and a key that is read wrongly
does not crash, it gives fluent nonsense. So this file translates what it knows into the strict
`ModelConfig`, and refuses by name whatever would change the mathematics::

    config.json (transformers 4)                          ModelConfig
      "rope_theta": 500000.0,                               rope=RopeConfig(rope_theta=500000.0,
      "rope_scaling": {"rope_type": "llama3", ...}                          rope_type="llama3", ...)
    config.json (transformers 5)
      "rope_parameters": {"rope_theta": ..., ...}           the same

    "rope_scaling": {"type": "yarn", ...}                 ValueError: rope scaling type 'yarn' is not ...

The whole way from a name to a model::

    folder = resolve_model("smollm2-135m-instruct")       # model_download.py
    config = load_model_config(folder)
    attention = make_attention_backend("auto", config, block_size=16, dtype=torch.float32, device="cpu")
    model = load_model(folder, attention, torch.float32, "cpu")
    tokenizer = load_tokenizer(folder)

vLLM V1: `vllm/transformers_utils/config.py`, `vllm/model_executor/model_loader/default_loader.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivllm.attention import AttentionBackend
from minivllm.config import ModelConfig, RopeConfig, require_int
from minivllm.llama import LlamaForCausalLM
from minivllm.weights.download import BUILTIN_MODELS, default_cache_dir, resolve_model
from minivllm.weights.random_model import random_llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "BUILTIN_MODELS",
    "default_cache_dir",
    "iterate_weights",
    "load_model",
    "load_model_config",
    "load_tokenizer",
    "random_llama",
    "resolve_model",
]

SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_model_config(folder: Path) -> ModelConfig:
    """Read `config.json` (and the eos ids of `generation_config.json`) into a `ModelConfig`.

    A key that is absent has the value that `transformers.LlamaConfig` gives it, except for the sizes,
    which must be there.

    Raises:
        ValueError: a file is absent or broken, or the model is not a plain Llama.
    """
    raw = read_json(folder / "config.json")
    refuse_other_models(raw, folder)
    for key in SIZES:
        if key not in raw:
            raise ValueError(f"{folder / 'config.json'} lacks {key}, without which no model can be built.")
        require_int(key, raw[key], minimum=1)
    heads = raw["num_attention_heads"]
    # Before grouped-query attention no file had num_key_value_heads, and few have head_dim: every query
    # head had its own KV head, and the heads split hidden_size evenly. Both keys may also be null.
    bos_token_id, eos_token_ids = special_token_ids(raw, folder)
    return ModelConfig(
        **{key: raw[key] for key in SIZES},
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        max_position_embeddings=raw.get("max_position_embeddings", 2048),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope=rope_config(raw),
        attention_bias=raw.get("attention_bias", False),
        mlp_bias=raw.get("mlp_bias", False),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; a ValueError names the file if it is absent or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: an incomplete or no Hugging Face model folder.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch or write it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}.")
    return content


def refuse_other_models(raw: dict[str, Any], folder: Path) -> None:
    """Raise a ValueError, naming the key, if the model is more or other than a plain Llama.

    Everything refused here would load without complaint: a Mistral has the very same weight names (and a
    sliding window), a GPTQ checkpoint has tensors that only look odd. Unknown rope types are refused by
    `RopeConfig`.
    """
    architectures = raw.get("architectures") or []
    if architectures != ["LlamaForCausalLM"] and (architectures or raw.get("model_type") != "llama"):
        found = ", ".join(architectures) or f"model_type {raw.get('model_type')!r}"
        raise ValueError(
            f"{folder} holds the architecture {found}; minivllm runs LlamaForCausalLM only. "
            "Running it as a Llama would give wrong text."
        )
    rope = rope_settings(raw)
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        # Newer architectures nest one set per kind of layer. Read as one, it would mean the defaults.
        raise ValueError(f"{folder / 'config.json'}: expected one set of rope settings, got {rope}.")
    for key, value, allowed in (
        ("hidden_act", raw.get("hidden_act", "silu"), ("silu",)),
        ("pretraining_tp", raw.get("pretraining_tp"), (None, 1)),
        ("quantization_config", raw.get("quantization_config"), (None,)),
        ("partial_rotary_factor", raw.get("partial_rotary_factor"), (None, 1)),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), (None, 1)),
    ):
        if value not in allowed:
            raise ValueError(
                f"{folder / 'config.json'} has {key} = {json.dumps(value)[:80]}, which changes what the "
                f"model computes; supported: {' or '.join(json.dumps(choice) for choice in allowed)}."
            )


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
    needed = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
    factors = {}
    for key in needed.get(rope_type, ()):
        if rope.get(key) is None:
            raise ValueError(f"rope scaling type {rope_type!r} needs {key}, but config.json gives {rope}.")
        factors[key] = float(rope[key])
    if rope_type == "llama3":
        # The length the model was trained on, before its reach was stretched by `factor`.
        trained = rope.get("original_max_position_embeddings", raw.get("max_position_embeddings", 2048))
        factors["original_max_position_embeddings"] = raw.get("original_max_position_embeddings", trained)
    theta = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    return RopeConfig(rope_theta=float(theta), rope_type=rope_type, **factors)


def special_token_ids(raw: dict[str, Any], folder: Path) -> tuple[int | None, tuple[int, ...]]:
    """Return (bos, all eos ids). `generation_config.json` wins: chat models add their end-of-turn there.

    Example, Llama 3.1 Instruct: `config.json` of the base model has 128001 (end of text), its chat version
    has [128001, 128008, 128009]. With only the first, the model would talk on as the user.
    """
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    bos, eos = (
        raw.get(key, default) if generation.get(key) is None else generation[key]
        for key, default in (("bos_token_id", 1), ("eos_token_id", 2))
    )
    if eos is None:
        return bos, ()
    return bos, tuple(eos) if isinstance(eos, list) else (eos,)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, each checked to be there.

    With an index, the files it names; a folder may hold others (older, or in another layout).
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
    else:
        names = ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ValueError(
            f"{folder} lacks the weight file {', '.join(missing) or '(its index names none)'}: an incomplete "
            "copy or download. Fetch it again."
        )
    return [folder / name for name in names]


def locate_weights(folder: Path) -> dict[str, Path]:
    """Hugging Face's name of every weight -> the file that holds it, from the headers of the files.

    Buffers that old checkpoints carry (`rotary_emb.inv_freq`) are left out: the config implies them.
    """
    locations = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                locations |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error}). Fetch or copy it again.") from error
    return {name: path for name, path in locations.items() if not name.endswith("rotary_emb.inv_freq")}


def read_weight(path: Path, name: str) -> Tensor:
    """One tensor, on the CPU in the dtype it is stored in; memory-mapped, so read when it is used."""
    with safe_open(path, framework="pt", device="cpu") as file:
        return file.get_tensor(name)


def iterate_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, tensor) for every weight in the folder, one tensor at a time.

    Each is mapped anew and unmapped when the caller drops it. One mapping for all would be simpler, but
    the pages that it touched count as ours until the end: 1.28 GB instead of 0.76 GB for SmolLM2.
    """
    for name, path in locate_weights(folder).items():
        yield name, read_weight(path, name)


def tied_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a tied model: the embedding once, whichever of its two names the files use.

    Raises:
        ValueError: both names are there with different values, so the config is wrong to say "tied".
    """
    locations = locate_weights(folder)
    if EMBEDDING in locations and LM_HEAD in locations:
        if not torch.equal(*(read_weight(locations[name], name) for name in (EMBEDDING, LM_HEAD))):
            raise ValueError(
                f"config.json says tie_word_embeddings, but {LM_HEAD} differs from {EMBEDDING}. "
                'Set "tie_word_embeddings": false in config.json to use both.'
            )
        del locations[LM_HEAD]
    for name, path in locations.items():
        yield EMBEDDING if name == LM_HEAD else name, read_weight(path, name)


def load_model(
    folder: Path, attention: AttentionBackend, dtype: torch.dtype, device: torch.device | str
) -> LlamaForCausalLM:
    """Build the model on `device` and fill it; every weight is converted to `dtype` on the way in.

    Args:
        folder: in Hugging Face format, see `resolve_model`.
        attention: made for this folder's config, by `make_attention_backend`.
        dtype: what the weights are held and multiplied in.
        device: "cpu", "cuda" or a torch device; no weight is on another device longer than it takes to copy.
    """
    config = load_model_config(folder)
    weights = tied_weights(folder) if config.tie_word_embeddings else iterate_weights(folder)
    model = LlamaForCausalLM(config, attention, dtype, device)
    model.load_weights(weights, default_cache_dir() / "linear_kernels.json")
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the folder's tokenizer, with its chat template if it has one. Never asks the network."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(
            f"{folder} has no tokenizer (looked for tokenizer.json). Name one with tokenizer=..., or pass "
            "skip_tokenizer_init=True and give prompts as token ids."
        )
    # Imported here, because they take seconds. The class that AutoTokenizer would choose for the generic
    # names is asked directly: that spares 2.5 of 3.8 seconds at every start.
    settings = folder / "tokenizer_config.json"
    class_name = read_json(settings).get("tokenizer_class") if settings.exists() else None
    if class_name in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    return Loader.from_pretrained(folder, local_files_only=True)

"""A folder in Hugging Face format -> model and tokenizer.

The whole way from a name to a model::

    folder = resolve_model("smollm2-135m-instruct")       # download.py
    config = load_model_config(folder)                    # hf_config.py
    attention = make_attention_backend("auto", config, block_size=16, dtype=torch.float32, device="cpu")
    model = load_model(folder, attention, torch.float32, "cpu")
    tokenizer = load_tokenizer(folder)

Weights are streamed: one tensor at a time goes from its file into its place in the model, so that a model of
538 MB is loaded with little more than 538 MB. No code in a folder is run: safetensors and JSON are data, and
a tokenizer that brings its own code is refused.

vLLM V1: `vllm/model_executor/model_loader/default_loader.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minivllm.attention import AttentionBackend
from minivllm.config import ModelConfig
from minivllm.distributed.sharding import WHOLE, Shard
from minivllm.model import Model
from minivllm.weights.download import BUILTIN_MODELS, default_cache_dir, resolve_model
from minivllm.weights.files import START_AGAIN, StoredWeight, locate_weights, read_json
from minivllm.weights.hf_config import load_model_config
from minivllm.weights.random_model import random_llama
from minivllm.weights.registry import architecture_named

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

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def iterate_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, tensor) for every weight in the folder, one tensor at a time.

    Each file is mapped anew for a tensor, and unmapped when the caller drops the tensor. One mapping for all
    would be simpler, but its pages count as ours until the end: 1.28 GB instead of 0.76 GB for SmolLM2.
    """
    for name, stored in locate_weights(folder).items():
        yield name, stored.read()


def drop_tied_copy(folder: Path, weights: dict[str, StoredWeight]) -> None:
    """Leave the embedding of a tied model once in `weights`, under either of its two names.

    Raises:
        ValueError: both names are there with different values, so the config is wrong to say "tied".
    """
    head = weights.pop(LM_HEAD, None)
    if head is None:
        return
    if EMBEDDING in weights and not torch.equal(weights[EMBEDDING].read(), head.read()):
        raise ValueError(
            f"{folder / 'config.json'} says tie_word_embeddings, but {LM_HEAD} differs from {EMBEDDING}. "
            'Set "tie_word_embeddings": false in it to use both.'
        )
    weights.setdefault(EMBEDDING, head)


def check_size(folder: Path, config: ModelConfig, weights: dict[str, StoredWeight]) -> None:
    """Refuse a config whose model would be far larger than its files, before memory is taken for it.

    Example: SmolLM2's files hold 134,515,008 numbers. With a hidden_size of 5,760,000 its config would ask
    for more than 10,000 times as many, which would end the process without a word. If the model fits into
    memory, `load_weights` names the weight whose size is wrong.

    Raises:
        ValueError: the matrices of the config hold more than twice as many numbers as the files.
    """
    heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads
    of_a_layer = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    asked = config.vocab_size * config.hidden_size + config.num_hidden_layers * of_a_layer
    stored = sum(math.prod(weight.shape) for weight in weights.values())
    if asked > 2 * stored:
        raise ValueError(
            f"{folder / 'config.json'} describes a model of {asked} numbers, but the weight files hold "
            f"{stored}: they do not belong to the same model, or one of them is damaged. {START_AGAIN}"
        )


def load_model(
    folder: Path,
    attention: AttentionBackend,
    dtype: torch.dtype,
    device: torch.device | str,
    shard: Shard = WHOLE,
) -> Model:
    """Build the model on `device` and fill it; every weight is converted to `dtype` on the way in.

    Args:
        folder: in Hugging Face format, see `resolve_model`.
        attention: made for the config that `shard` leaves of this folder's, by `make_attention_backend`.
        dtype: what the weights are held and multiplied in.
        device: "cpu", "cuda" or a torch device; no weight is on another device longer than it takes to copy.
        shard: the part of the model to load, a smaller model; no more than that is read.

    Raises:
        ValueError: config and weights do not fit, or a weight is not a finite floating-point tensor.
    """
    config, weights = load_model_config(folder), locate_weights(folder)
    if config.tie_word_embeddings:
        drop_tied_copy(folder, weights)
    check_size(folder, config, weights)
    model = architecture_named(config.architecture).cls(shard.config(config), attention, dtype, device)
    choices = default_cache_dir() / "linear_kernels.json"
    parts = ((name, stored.read(shard.part_of(name, stored.shape))) for name, stored in weights.items())
    try:
        model.load_weights(parts, choices)
    except ValueError as error:
        if str(folder) in str(error):  # about a single file
            raise
        raise ValueError(f"{folder / 'config.json'} and its weights: {error}") from error
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the folder's tokenizer, with its chat template if it has one. Never asks the network.

    Raises:
        ValueError: there is no tokenizer, it is damaged, or it brings code of its own.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} has no tokenizer (looked for tokenizer.json). Name one with tokenizer=..., or pass "
            "skip_tokenizer_init=True and give prompts as token ids."
        )
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    if settings.get("auto_map") is not None:
        # transformers would ask on the terminal whether to run the code, even in a notebook or a server.
        raise ValueError(
            f"{path} names code of its own (auto_map = {str(settings['auto_map'])[:80]}), which is "
            "never run. Name another tokenizer with tokenizer=..., or pass skip_tokenizer_init=True."
        )
    # Imported here, because the imports take seconds. For the generic names the class that AutoTokenizer
    # would choose is used directly: that saves 2.5 of 3.8 seconds at every start.
    if settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    try:
        tokenizer = Loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("a")  # some settings are read only at the first use
        if not isinstance(tokenizer.chat_template, str | dict | None):
            raise TypeError(f"chat_template is of type {type(tokenizer.chat_template).__name__}")
    except Exception as error:  # any type: the libraries below do not expect damaged files
        for name in (*TOKENIZER_SETTINGS, "tokenizer.json", "config.json"):
            if (folder / name).exists():
                read_json(folder / name)  # a ValueError that names the file, if it is this one
        files = [name for name in (*TOKENIZER_SETTINGS, *TOKENIZER_FILES) if (folder / name).exists()]
        raise ValueError(
            f"the tokenizer in {folder} ({', '.join(files)}) cannot be loaded "
            f"({type(error).__name__}: {str(error)[:200]}). {START_AGAIN}"
        ) from error
    return tokenizer

"""Tiny random Llamas, and their relatives, in Hugging Face format, for tests and notebooks: `random_llama`.

Why it exists: whether the engine is right does not depend on the weights being trained. A Llama of two
layers is written and read in milliseconds, needs no network, and Hugging Face reads the same folder, so it
can be the oracle. Every shape that matters (tied or not, biases, grouped queries, rope types, shards) is
one keyword away::

    folder = random_llama(tmp_path / "m", num_key_value_heads=1, tie_word_embeddings=True)
    AutoModelForCausalLM.from_pretrained(folder)             # Hugging Face
    load_model(folder, attention, torch.float32, "cpu")      # minivllm

The scale of the weights is chosen so that mistakes show. With Hugging Face's own initial scale (0.02)
attention is almost uniform, every layer adds almost nothing, and a tied model repeats its last token after
every past: a wrong block table would go unseen. Here the scores spread by about +-2 and the layers outweigh
the embedding, so that greedy text wanders and depends on the whole past.

For speed on a GPU the weights need not be trained either, only as large as real ones (`SHAPES`)::

    $ python -m minivllm.weights.random_model llama-3.1-8b FOLDER       16 GB of bfloat16, some minutes

vLLM V1 does the same with `load_format="dummy"` (weights only, no folder on disk).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

# The tiny model, and at the same time the list of keys that may be overridden. Two of everything that could
# be confused if there were one: 2 layers (layer 1 must not read layer 0's K and V), and 2 query heads per KV
# head (the index of one is not the index of the other).
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 258,  # 256 bytes, bos, eos
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "sliding_window": None,  # a Mistral's; a Llama has none
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": None,  # derived: the last id but one
    "eos_token_id": None,  # derived: the last id
    "torch_dtype": "float32",
}

# The relatives: `random_llama(folder, **FAMILIES["qwen3"])`. Other keys may follow, as for a Llama.
FAMILIES: dict[str, dict[str, Any]] = {
    name: {"architectures": [architecture], "model_type": name}
    for name, architecture in (
        ("llama", "LlamaForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("mistral", "MistralForCausalLM"),
    )
}

# What the models below have in common: vocabulary, positions, and 4 query heads per KV head.
_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "rope_theta": 500_000.0,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _LLAMA_3
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": _LLAMA_3
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "head_dim": 128},
    "tiny": {},
}
"""What these models set in `config.json`, apart from the scaling of their positions."""

# The least that a chat template can be, in the Jinja that Hugging Face's tokenizers run. One question becomes
#     <s>user: Hello</s><s>assistant:
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def random_llama(
    folder: Path,
    *,
    seed: int = 0,
    num_shards: int = 1,
    byte_tokenizer: bool = False,
    device: str = "cpu",
    **config_overrides: Any,
) -> Path:
    """Write a Llama with random weights into `folder` and return `folder`; by default a tiny one.

    Args:
        folder: created if need be.
        seed: the same seed and config give the same weights.
        num_shards: above 1, the weights are spread over that many files with an index, as big models are.
        byte_tokenizer: also write a tokenizer: token id = byte value, then `<s>` and `</s>`.
        device: where the numbers are drawn. A GPU draws 8 billion in seconds, and others for the same seed.
        config_overrides: keys of `config.json`, see `CONFIG`; unknown ones are a TypeError. `torch_dtype` is
            what the weights are rounded to.

    Returns:
        The folder, ready for `load_model` and for `transformers.AutoModelForCausalLM.from_pretrained`.

    Raises:
        TypeError: an unknown key.
        ValueError: no shards, or a vocabulary that does not hold all bytes.
    """
    # A key with a typo would end up in config.json unread, and the test would test nothing.
    unknown = sorted(set(config_overrides) - set(CONFIG))
    if unknown:
        raise TypeError(f"unknown config key {', '.join(unknown)}. Known: {', '.join(CONFIG)}.")
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1, got {num_shards}.")
    config = CONFIG | config_overrides
    vocab_size = config["vocab_size"]
    if byte_tokenizer and vocab_size < 258:
        raise ValueError(f"byte_tokenizer needs vocab_size of at least 258, got {vocab_size}.")
    # The tokenizer fixes its two special ids; without it they are the vocabulary's last two.
    bos, eos = (256, 257) if byte_tokenizer else (vocab_size - 2, vocab_size - 1)
    config |= {
        "bos_token_id": config_overrides.get("bos_token_id", bos),
        "eos_token_id": config_overrides.get("eos_token_id", eos),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_shards(folder, random_weights(config, seed, device), num_shards)
    if byte_tokenizer:
        write_byte_tokenizer(folder, config["max_position_embeddings"])
    return folder


def random_weights(config: dict[str, Any], seed: int, device: str = "cpu") -> dict[str, Tensor]:
    """All weights under Hugging Face's names; a linear weight has shape (out_features, in_features).

    The numbers are tuned by one measure: how many of 48 greedy tokens are different. Over 12 prompts and 4
    seeds, tied, there are at least 11 and in the median 32; with Hugging Face's initial scale at most 3.

    All are drawn in float32 and then rounded: on one device a seed gives the same model in every dtype, but
    for the rounding. They come from one stream, so a weight added in the middle would change all after it.

    Args:
        config: complete, as `random_llama` writes it.
        seed: of a generator of its own; torch's global one is left alone.
        device: of that generator; the weights come back to the CPU.
    """
    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, config["torch_dtype"])
    weights: dict[str, Tensor] = {}

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        numbers = torch.randn(*shape, generator=generator, device=device)
        return numbers.mul_(std).add_(mean).to(dtype).cpu()

    def add_linear(name: str, out_features: int, in_features: int, gain: float, bias: bool) -> None:
        """Inputs of size 1 give outputs of size `gain`, at any width.

        An output is a sum of `in_features` products, each with the variance gain**2 / in_features: gain**2 in
        all. With 64 inputs and a gain of 1.5 a weight has a standard deviation of 1.5 / 8 = 0.19.
        """
        weights[f"{name}.weight"] = normal(out_features, in_features, std=gain * in_features**-0.5)
        if bias:
            weights[f"{name}.bias"] = normal(out_features, std=0.5)

    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query_size, kv_size = (config[f"num_{kind}_heads"] * head_dim for kind in ("attention", "key_value"))
    biased = [f"self_attn.{part}_proj" for part in "qkv"] if config["model_type"] == "qwen2" else []
    # Queries and keys of size 1.5 give scores of size 1.5 * 1.5 = 2.25: the product of two heads of D numbers
    # is sqrt(D) times as large, and attention divides by sqrt(D).
    # 0.4 gives logits of +-3 when the embedding is tied, that is, also the output matrix. The gain of 16 at
    # the end of each block keeps the residual stream from being mostly the last token's embedding, which,
    # tied to the output, would vote for repeating that token.
    weights["model.embed_tokens.weight"] = normal(config["vocab_size"], hidden, std=0.4)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, out_features, in_features, gain in (
            ("self_attn.q_proj", query_size, hidden, 1.5),
            ("self_attn.k_proj", kv_size, hidden, 1.5),
            ("self_attn.v_proj", kv_size, hidden, 1.0),
            ("self_attn.o_proj", hidden, query_size, 16.0),
            ("mlp.gate_proj", inner, hidden, 1.0),
            ("mlp.up_proj", inner, hidden, 1.0),
            ("mlp.down_proj", hidden, inner, 16.0),
        ):
            bias = config["attention_bias" if name.startswith("self_attn") else "mlp_bias"]
            add_linear(prefix + name, out_features, in_features, gain, bias or name in biased)
        for norm in ("q_norm", "k_norm") if config["model_type"] == "qwen3" else ():
            weights[f"{prefix}self_attn.{norm}.weight"] = normal(head_dim, std=0.3, mean=1.5)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{norm}.weight"] = normal(hidden, std=0.1, mean=1.0)
    weights["model.norm.weight"] = normal(hidden, std=0.1, mean=1.0)
    if not config["tie_word_embeddings"]:
        # Logits of +-3 again: greedy choices stand clear of float noise (the smallest gap between first
        # and second in 2,300 steps was 7e-5), and sampling at temperature 1 is neither flat nor greedy.
        add_linear("lm_head", config["vocab_size"], hidden, gain=3.0, bias=False)
    return weights


def write_shards(folder: Path, weights: dict[str, Tensor], num_shards: int) -> None:
    """Write `model.safetensors`, or `num_shards` files and the index that says which tensor lies where.

    Tensors are dealt out in turn, so that neighbours of a layer land in different files: a loader that reads
    one file only, or assumes a layer lies in one, fails at once. Five tensors in two shards::

        model-00001-of-00002.safetensors    a, c, e
        model-00002-of-00002.safetensors    b, d
        model.safetensors.index.json        {"weight_map": {"a": "model-00001-of-00002.safetensors", ...}}
    """
    if num_shards == 1:
        # The metadata is what transformers writes too: "pt" for PyTorch.
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    names = list(weights)
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        shard_names = names[shard::num_shards]
        weight_map |= dict.fromkeys(shard_names, file_name)
        save_file({name: weights[name] for name in shard_names}, folder / file_name, {"format": "pt"})
    total_size = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def byte_symbols() -> list[str]:
    """The character that stands for each byte 0..255 in a byte-level tokenizer (GPT-2's table).

    A printable byte stands for itself; the others take the next free characters from 256 on, in order:
    65 is "A", the space (32) is "Ġ" (chr(288)).
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    borrowed = iter(sorted(symbol for symbol in alphabet if ord(symbol) > 255))
    return [chr(byte) if chr(byte) in alphabet else next(borrowed) for byte in range(256)]


def write_byte_tokenizer(folder: Path, model_max_length: int) -> None:
    """Write the tokenizer whose ids are the UTF-8 bytes, with `<s>` = 256, `</s>` = 257, a chat template.

    Example: "Hé" -> [72, 195, 169]. Every text has tokens, the model may sample any bytes, and a character
    may be cut across tokens: the case that `detokenizer.py` exists for.

    The tokenizer is a BPE without merges, so that transformers loads it like a real one. No token is added in
    front of a prompt: the ids of a text are its bytes and nothing else.

    Args:
        folder: gets `tokenizer.json` and `tokenizer_config.json`.
        model_max_length: written down for transformers; minivllm asks the model.
    """
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with one key per line, as Hugging Face does."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Write a model of a real one's size."""
    parser = argparse.ArgumentParser(prog="python -m minivllm.weights.random_model", description=main.__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-shards", type=int, default=4, help="files the weights are spread over")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu", help="draws the numbers")
    parser.add_argument(
        "--mark-complete", action="store_true", help="write an empty file `complete` at the end"
    )
    args = parser.parse_args(arguments)
    on_gpu = args.device == "auto" and torch.cuda.is_available()
    device = "cuda" if on_gpu else args.device.replace("auto", "cpu")
    print(random_llama(args.folder, num_shards=args.num_shards, device=device, **SHAPES[args.shape]))
    if args.mark_complete:  # writing takes minutes: the mark tells a whole folder from a part of one
        (args.folder / "complete").touch()


if __name__ == "__main__":
    main()

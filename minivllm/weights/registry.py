"""Which class computes which architecture: the one table into which a new model is entered.

    config.json   "architectures": ["Qwen3ForCausalLM"]   ->   qwen3.Qwen3ForCausalLM
                  "model_type": "qwen3"                   ->   the same, where no architecture is named

Some architectures are a Llama with other settings, so they need an entry here and no code. An entry also
says what a key means that `config.json` leaves out, because each family has its own answer: without
"num_key_value_heads" a Llama has as many as query heads, a Mistral 8::

    Qwen2      Q, K and V have a bias, the output projection has none      Qwen2, Qwen2.5
    Mistral    no bias; a sliding window in the first release only         Mistral 7B, Ministral

A name that is not in the table is refused. To run it as its nearest relative would load without complaint
and give wrong text: a Mistral has the very weight names of a Llama, and perhaps a sliding window besides.

vLLM V1: `vllm/model_executor/models/registry.py` (about 300 entries).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minivllm.llama import LlamaForCausalLM
from minivllm.model import Model
from minivllm.qwen3 import Qwen3ForCausalLM


@dataclass(frozen=True)
class Architecture:
    """How to read the `config.json` of one architecture, and what to build from it.

    Attributes:
        model_type: transformers' name of the family.
        cls: the class that computes it.
        absent: keys which `config.json` may leave out, and what transformers takes them to be, where that is
            not what a Llama's file would mean.
        fixed: what holds for the architecture, whatever the file says about it.
    """

    model_type: str
    cls: type[Model]
    absent: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


_LLAMA = Architecture("llama", LlamaForCausalLM)
_QWEN = {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "sliding_window": 4096}
_MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096}
_NO_BIAS = {"attention_bias": False, "mlp_bias": False}

MODELS: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,  # how the first converted checkpoints of 2023 spell it
    "Qwen2ForCausalLM": Architecture("qwen2", LlamaForCausalLM, _QWEN, _NO_BIAS | {"qkv_bias": True}),
    "Qwen3ForCausalLM": Architecture(
        "qwen3", Qwen3ForCausalLM, _QWEN | {"head_dim": 128}, {"mlp_bias": False}
    ),
    "MistralForCausalLM": Architecture(
        "mistral", LlamaForCausalLM, _MISTRAL, _NO_BIAS | {"use_sliding_window": True}
    ),
}


def architecture_named(name: str) -> Architecture:
    """The entry of an architecture; a ValueError names the known ones if there is none."""
    if name not in MODELS:
        raise ValueError(
            f"the architecture {name} is not supported; known: {', '.join(MODELS)}. "
            "Running it as one of these would give wrong text."
        )
    return MODELS[name]


def architecture_of(raw: dict[str, Any]) -> str:
    """The name of the architecture that the content of a `config.json` names.

    Raises:
        ValueError: it names none, several, one that is not known, or one at odds with its `model_type`.
    """
    named, model_type = raw.get("architectures") or [], raw.get("model_type")
    if not named:
        named = [name for name, entry in MODELS.items() if entry.model_type == model_type][:1]
    if not (isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)):
        raise ValueError(
            f"expected one of the architectures {', '.join(MODELS)}, got architectures = {str(named)[:80]} "
            f"and model_type = {str(model_type)[:80]!r}."
        )
    known = architecture_named(named[0])
    if model_type not in (None, known.model_type):
        raise ValueError(
            f"the architecture {named[0]} does not go with model_type = {str(model_type)[:80]!r}: "
            "transformers would run another model."
        )
    return named[0]

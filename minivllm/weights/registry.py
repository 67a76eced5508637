"""Which class computes which architecture: the one table into which a new model is entered.

    config.json   "architectures": ["LlamaForCausalLM"]   ->   llama.LlamaForCausalLM
                  "model_type": "llama"                   ->   the same, where no architecture is named

A name that is not in the table is refused. To run it as its nearest relative would load without complaint
and give wrong text: a Mistral has the very weight names of a Llama, and a sliding window besides.

vLLM V1: `vllm/model_executor/models/registry.py` (about 300 entries).
"""

from __future__ import annotations

from typing import Any

from minivllm.llama import LlamaForCausalLM
from minivllm.model import Model

MODELS: dict[str, type[Model]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "LLaMAForCausalLM": LlamaForCausalLM,  # how the first converted checkpoints of 2023 spell it
}
MODEL_TYPES = {"llama": "LlamaForCausalLM"}


def model_class(architecture: str) -> type[Model]:
    """The class that computes `architecture`; a ValueError names the known ones if there is none."""
    if architecture not in MODELS:
        raise ValueError(
            f"the architecture {architecture} is not supported; known: {', '.join(MODELS)}. "
            "Running it as one of these would give wrong text."
        )
    return MODELS[architecture]


def architecture_of(raw: dict[str, Any]) -> str:
    """The architecture that the content of a `config.json` names.

    Raises:
        ValueError: it names none, several, one that is not known, or one at odds with its `model_type`.
    """
    named, model_type = raw.get("architectures") or [], raw.get("model_type")
    if not named and isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    if not (isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)):
        raise ValueError(
            f"expected one of the architectures {', '.join(MODELS)}, got architectures = {str(named)[:80]} "
            f"and model_type = {str(model_type)[:80]!r}."
        )
    cls = model_class(named[0])
    if model_type is not None and model_type not in [
        kind for kind, name in MODEL_TYPES.items() if MODELS[name] is cls
    ]:
        raise ValueError(
            f"the architecture {named[0]} does not go with model_type = {str(model_type)[:80]!r}: "
            "transformers would run another model."
        )
    return named[0]

"""`generation_config.json`: how a model's authors want it sampled, and where its answers end.

Most folders have the file, all its keys are optional, and most of its about 50 keys steer `generate` of
transformers. What a request of ours starts from, as in vLLM::

    {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 256,       SamplingParams(temperature=0.6, top_p=0.9,
     "do_sample": true, "eos_token_id": [128001, 128009], ...}                     max_tokens=256)

`do_sample` is not read, as in vLLM: with `false`, transformers takes the likeliest token at any temperature;
say `SamplingParams(temperature=0)` for that.

vLLM V1: `ModelConfig.get_diff_sampling_param` in `vllm/config/model.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minivllm.sampling_params import SamplingParams
from minivllm.weights.files import START_AGAIN, read_json

FILE = "generation_config.json"
# Their name -> ours. The keys that vLLM reads, and no others.
SAMPLING_KEYS = {name: name for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")}
SAMPLING_KEYS["max_new_tokens"] = "max_tokens"


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The file's content; empty if there is no such file."""
    return read_json(folder / FILE) if (folder / FILE).exists() else {}


def default_sampling_params(folder: Path) -> SamplingParams:
    """What the model's authors recommend. A key that is absent or null has the value of `SamplingParams()`.

    Raises:
        ValueError: the file is broken or a value out of range; the text names the file.
    """
    content = read_generation_config(folder)
    given = {ours: content[key] for key, ours in SAMPLING_KEYS.items() if content.get(key) is not None}
    try:
        return SamplingParams(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / FILE}: {error} {START_AGAIN}") from error


def eos_token_ids(raw: dict[str, Any], folder: Path) -> tuple[int, ...]:
    """The ids that end a sequence. `generation_config.json` wins: chat models add their end-of-turn there.

    Example, Llama 3.1 Instruct: `config.json` of the base model has 128001 (end of text), its chat version
    has [128001, 128008, 128009]. With only the first, the model would talk on as the user.

    null and numbers below 0 (some programs write -1) mean that there is no such token. `InputProcessor` adds
    the tokenizer's own end token, which fine-tunes may name there and nowhere else.

    Args:
        raw: the content of `config.json`.
        folder: the model's.

    Raises:
        ValueError: an id is not an int; the text names the file.
    """
    path, value = folder / FILE, read_generation_config(folder).get("eos_token_id")
    if value is None:  # absent or null
        path, value = folder / "config.json", raw.get("eos_token_id", 2)
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else [value]
    for token in tokens:
        if isinstance(token, bool) or not isinstance(token, int):
            raise ValueError(
                f"{path}: eos_token_id must be an int or a list of ints, got {str(value)[:80]!r}. "
                f"{START_AGAIN}"
            )
    return tuple(token for token in tokens if token >= 0)

"""`generation_config.json`: how a model's authors want it sampled, and where its answers end.

Most folders have the file, all its keys are optional, and most of its about 50 keys steer `generate` of
transformers. What a request of ours starts from, as in vLLM::

    {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 256,       SamplingParams(temperature=0.6, top_p=0.9,
     "do_sample": true, "eos_token_id": [128001, 128009], ...}                     max_tokens=256)

`do_sample` is not read, as in vLLM: with `false`, transformers takes the likeliest token, whatever the
temperature; say `SamplingParams(temperature=0)` for that.

vLLM V1: `ModelConfig.get_diff_sampling_param` in `vllm/config/model.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minivllm.config import require_int
from minivllm.sampling_params import SamplingParams
from minivllm.weights.files import START_AGAIN, read_json

FILE = "generation_config.json"
# Their name -> ours. Those that vLLM reads, and no other.
SAMPLING_KEYS = {name: name for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")}
SAMPLING_KEYS["max_new_tokens"] = "max_tokens"


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The file's content; empty if there is no such file."""
    return read_json(folder / FILE) if (folder / FILE).exists() else {}


def default_sampling_params(folder: Path) -> SamplingParams:
    """What the model's authors recommend. A key that is absent or null is as in `SamplingParams()`.

    Raises:
        ValueError: the file is broken or a value out of range; the text names the file.
    """
    content = read_generation_config(folder)
    given = {ours: content[key] for key, ours in SAMPLING_KEYS.items() if content.get(key) is not None}
    try:
        return SamplingParams(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / FILE}: {error} {START_AGAIN}") from error


def special_token_ids(raw: dict[str, Any], folder: Path) -> tuple[int | None, tuple[int, ...]]:
    """Return (bos, all eos ids). `generation_config.json` wins: chat models add their end-of-turn there.

    Example, Llama 3.1 Instruct: `config.json` of the base model has 128001 (end of text), its chat version
    has [128001, 128008, 128009]. With only the first, the model would talk on as the user.

    null and numbers below 0 (some programs write -1) mean that there is no such token. `InputProcessor` adds
    the tokenizer's own end token, which fine-tunes may name there and nowhere else.

    Args:
        raw: the content of `config.json`.
        folder: the model's.

    Raises:
        ValueError: an id is no int; the text names the file.
    """
    generation, ids = read_generation_config(folder), []
    for key, default in (("bos_token_id", 1), ("eos_token_id", 2)):
        path, value = folder / FILE, generation.get(key)
        if value is None:  # absent or null
            path, value = folder / "config.json", raw.get(key, default)
        several = value if isinstance(value, list) and key == "eos_token_id" else [value]
        try:
            for token in [] if value is None else several:
                require_int(key, token, minimum=-(1 << 31))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error} {START_AGAIN}") from error
        ids.append(tuple(token for token in several if token is not None and token >= 0))
    return next(iter(ids[0]), None), ids[1]

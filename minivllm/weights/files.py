"""What lies in a model folder, read with care: JSON, and the headers of the weight files.

Why it exists: a folder comes from strangers, over a network, and perhaps only in part. Each function here
either returns what a file says or raises an error that names the file and says what to do; nothing in a
folder is run, and no name in a file leads out of the folder::

    model.safetensors.index.json                   {"weight_map": {"lm_head.weight": "../../secret", ...}}
      -> ValueError: .../model.safetensors.index.json names the weight file '../../secret', expected ...

The names are checked, not what they point to: in the hub's cache each file of a folder is a symbolic link
to a store beside it, put there by the downloader. A name, in contrast, is chosen by the folder's author.

vLLM V1: `vllm/model_executor/model_loader/weight_utils.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivllm.config import few

START_AGAIN = "If it is damaged: delete the model's folder and download it again, or write the file anew."
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Tensors that can be computed from the config, which older programs stored beside the weights: the angles of
# the rotary embedding (transformers before July 2023, ColossalAI), and masks of the attention.
DERIVED = re.compile(
    r"rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$|self_attn\.(masked_)?bias$"
)
# A checkpoint of the bare network has no "model." in front of these.
BARE = re.compile(r"(embed_tokens|layers|norm)\.")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        ValueError: the file is absent, unreadable, not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: an incomplete or no Hugging Face model folder.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). {START_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). {START_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(content).__name__}. {START_AGAIN}")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model, each checked to be there.

    A whole `model.safetensors` wins over an index, as in transformers: an index beside it is left over from
    a version in several files. Without it, the files that the index names; a folder may hold others.

    Raises:
        ValueError: a file is absent, or the index is not an index or names a file of another folder.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    index = folder / INDEX
    if not index.exists():
        raise ValueError(
            f"{folder} lacks the weight file {WHOLE}: an incomplete copy or download. {START_AGAIN}"
        )
    weight_map = read_json(index).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map):
        raise ValueError(f'{index} has no "weight_map" from weights to files. {START_AGAIN}')
    for name in weight_map.values():
        if not (isinstance(name, str) and re.fullmatch(r"[^/\\:\0]+\.safetensors", name)):
            raise ValueError(
                f"{index} names the weight file {str(name)[:80]!r}, expected the plain name of a "
                f"*.safetensors file beside it. {START_AGAIN}"
            )
    names = set(weight_map.values())
    missing = {name for name in names if not (folder / name).is_file()}
    if missing:
        raise ValueError(
            f"{folder} lacks the weight file {few(missing)}: an incomplete copy or download. {START_AGAIN}"
        )
    return [folder / name for name in sorted(names)]


class StoredWeight:
    """A weight's place on disk: the file, the name in it, the shape. The values are read by `read`."""

    def __init__(self, path: Path, name: str, shape: list[int]) -> None:
        self.path, self.name, self.shape = path, name, shape

    def read(self, part: tuple[slice, ...] | None = None) -> Tensor:
        """The tensor or a part of it, on the CPU in the dtype it is stored in.

        Memory-mapped, so read when it is used; of a part, the bytes around it are not read.

        One pass for the smallest and the largest value finds NaN and infinity too, and it reads pages that
        the copy into the model needs anyway.

        Raises:
            ValueError: the values are not floating-point or not finite; the text names file and weight.
        """
        with safe_open(self.path, framework="pt", device="cpu") as file:
            weight = file.get_tensor(self.name) if part is None else file.get_slice(self.name)[part]
        if weight.dtype not in FLOATING:
            raise ValueError(
                f"{self.path}: the weight {self.name} is stored as {weight.dtype}, expected one of "
                f"{', '.join(map(str, FLOATING))}. Quantized weights are not read: take the plain version."
            )
        if weight.numel() and not all(bound.isfinite() for bound in torch.aminmax(weight)):
            raise ValueError(
                f"{self.path}: the weight {self.name} is not finite (NaN or infinite). {START_AGAIN}"
            )
        return weight


def locate_weights(folder: Path) -> dict[str, StoredWeight]:
    """Hugging Face's name of every weight -> where it is stored, from the headers of the files.

    `DERIVED` tensors are left out, and names of a bare network (`layers.0...`) get their `model.`.

    Raises:
        ValueError: a file cannot be read, or two tensors have one name.
    """
    found: dict[str, StoredWeight] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                stored = [StoredWeight(path, name, file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}). {START_AGAIN}") from error
        for weight in stored:
            name = f"model.{weight.name}" if BARE.match(weight.name) else weight.name
            if DERIVED.search(name):
                continue
            if name in found:
                raise ValueError(
                    f"{name} is stored twice: in {found[name].path} and in {path}. {START_AGAIN}"
                )
            found[name] = weight
    return found

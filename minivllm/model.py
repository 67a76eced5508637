"""`Model`: what the engine asks of a model of any architecture.

Everything above the models works with token ids, positions and blocks, and knows nothing of layers or
heads. So a second architecture is one new file and one entry in `weights/registry.py`; the four places
that hold a model stay as they are::

    weights/loader.py         load_weights(...)                  fill it, once
    metrics/memory.py         config, nbytes, one forward pass   how much room is left for KV blocks
    model_runner.py           forward(...) -> (T, hidden)        each step
                              compute_logits(rows) -> (N, V)     of the rows that are sampled from
    backends/cuda_graphs.py   forward(...)                       recorded, then replayed (a CPU:
                                                                 `compiled_steps.py`, for a plain Llama)

It is a protocol: a class that has these members is a `Model` without inheriting anything. `LlamaForCausalLM`
is one.

vLLM V1: `vllm/model_executor/models/interfaces_base.py` (`VllmModel`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from minivllm.attention import AttentionBackend, AttentionMetadata
from minivllm.config import ModelConfig
from minivllm.kv_cache import KVCache


class Model(Protocol):
    """A language model that keeps its past in a paged KV cache. T tokens, N sampled rows, vocabulary V.

    `(config, attention, dtype, device)` makes a model of a class in the registry, still empty; `load_weights`
    fills it.
    """

    config: ModelConfig
    # The product by which its linear layers multiply, by name; None until there are weights.
    linear_kernel: str | None

    def __init__(
        self, config: ModelConfig, attention: AttentionBackend, dtype: torch.dtype, device: torch.device | str
    ) -> None: ...

    @property
    def nbytes(self) -> int:
        """Bytes of all weights held."""

    def forward(
        self, input_ids: Tensor, positions: Tensor, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """(T,) token ids and positions -> (T, hidden); K and V of the T tokens go into `kv_cache`."""

    # What `nn.Module` makes of `forward`: calling the model runs the hooks of PyTorch's tools as well.
    __call__ = forward

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(N, hidden) -> (N, V) float32."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], kernel_choices: Path | None = None) -> None:
        """Copy in weights under their Hugging Face names; a ValueError names those which do not fit.

        `kernel_choices`: the file in which the fastest product on this machine is remembered.
        """

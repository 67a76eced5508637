"""Paged attention by the project's own kernels, which read the blocks in place; the choice of a backend.

=========  =====================================  ==============================================
backend    decode (one query per sequence)        prefill (several)
=========  =====================================  ==============================================
`torch`    gather, then SDPA                      SDPA
`numba`    `kernels/paged_attention_cpu.py`       as `torch` from 9 queries on; few are decodes
`triton`   `kernels/paged_attention.py`           `kernels/prefill_attention.py`
=========  =====================================  ==============================================

`auto` takes `triton` on a GPU and, on a CPU, `numba` for float32 where Numba is installed, else `torch`. The
backends differ in speed and in rounding, not in meaning; each is tested against the same oracle.

Paper: section 4.1.
vLLM V1: `v1/attention/selector.py`, `v1/attention/backends/triton_attn.py` and `cpu_attn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from minivllm.attention import AttentionBackend, AttentionMetadata
from minivllm.backends.attention_torch import TorchAttention, TorchPlan
from minivllm.config import CHOICES, ModelConfig, require_choice
from minivllm.kv_cache import KVCache

FEW_QUERIES = 8
"""Up to so many queries of a sequence are computed one by one: a decode, or drafts that are verified."""


@dataclass(frozen=True)
class NumbaPlan(TorchPlan):
    """The queries of sequences with few of them as the CPU kernel wants them; `pieces` has the others."""

    # (N,) int64: their places among the step's T tokens.
    tokens: np.ndarray
    # (N, max_blocks) int32
    block_tables: np.ndarray
    # (N,) int32
    seq_lens: np.ndarray


class NumbaAttention(TorchAttention):
    """Decode with the compiled loops of `kernels/paged_attention_cpu.py`; prefill as `TorchAttention`."""

    name = "numba"

    def __init__(
        self, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if torch.device(device).type != "cpu" or dtype != torch.float32:
            raise ValueError(
                f"attention_backend 'numba' is for float32 on a CPU, not for {dtype} on {device}. "
                "Use 'torch', or 'triton' on a GPU."
            )
        if find_spec("numba") is None:
            raise ValueError("attention_backend 'numba' needs the package numba: pip install numba.")
        # Imported here and not above: it takes a third of a second, and only this backend needs it.
        from minivllm.kernels.paged_attention_cpu import compile_paged_attention_cpu, deal_out, use_threads

        super().__init__(config, block_size, dtype, device)
        self._kernel = compile_paged_attention_cpu(config.head_dim)
        self._deal_out, self._use_threads = deal_out, use_threads

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Tell the sequences with few queries from the others, and deal these queries out to the threads.

        The kernel knows one query per row. A few queries of one sequence are as many rows with the same block
        table, each with the keys up to itself: 3 queries, the last of 10 tokens, see 8, 9 and 10 keys.
        """
        # As many threads as PyTorch uses for the operators before and after.
        num_threads = self._use_threads(torch.get_num_threads())
        starts, seq_lens = metadata.query_start_loc.numpy(), metadata.seq_lens.numpy()
        counts = np.diff(starts)
        pieces = self.cut(metadata, np.flatnonzero(counts > FEW_QUERIES).tolist())
        tokens = np.flatnonzero(np.repeat(counts <= FEW_QUERIES, counts))  # (N,)
        sequences = np.repeat(np.arange(len(counts)), counts)[tokens]  # (N,)
        num_keys = (seq_lens[sequences] - (starts[sequences + 1] - 1 - tokens)).astype(np.int32)
        order = self._deal_out(num_keys, num_threads)
        tables = metadata.block_tables.numpy()[sequences[order]]
        return replace(metadata, plan=NumbaPlan(pieces, tokens[order], tables, num_keys[order]))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: KVCache,
        layer: int,
        metadata: AttentionMetadata,
        scale: float,
    ) -> Tensor:
        """See `AttentionBackend.forward`; `metadata` must come from this backend's `prepare`."""
        # Writes K and V and attends for the pieces; the rows of the decoding sequences are not filled yet.
        output = super().forward(query, key, value, kv_cache, layer, metadata, scale)
        plan = metadata.plan
        if len(plan.tokens):
            # NumPy arrays of the same memory: nothing is copied.
            cache = kv_cache.key[layer].numpy(), kv_cache.value[layer].numpy()
            batch = plan.tokens, plan.block_tables, plan.seq_lens
            self._kernel(query.numpy(), *cache, *batch, np.float32(scale), output.numpy())
        return output


class TritonAttention:
    """Paged attention from the project's own Triton kernels, which read the blocks where they are.

    Nothing is gathered, so there is nothing to plan. Without a GPU the kernels run in Triton's
    interpreter: right, and thousands of times slower, so only for tests.
    """

    name = "triton"

    def __init__(self) -> None:
        # Imported here and not above: Triton is optional, and a plain CPU run never loads it.
        from minivllm.kernels.paged_attention import paged_attention
        from minivllm.kernels.prefill_attention import prefill_attention
        from minivllm.kernels.reshape_and_cache import reshape_and_cache

        self._write, self._decode, self._prefill = reshape_and_cache, paged_attention, prefill_attention

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Nothing to do: the kernels read the block tables themselves."""
        return metadata

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: KVCache,
        layer: int,
        metadata: AttentionMetadata,
        scale: float,
    ) -> Tensor:
        """See `AttentionBackend.forward`."""
        key_cache, value_cache = kv_cache.key[layer], kv_cache.value[layer]
        self._write(key, value, key_cache, value_cache, metadata.slot_mapping)
        tables, seq_lens = metadata.block_tables, metadata.seq_lens
        # A step of decodes alone: a kernel that splits long sequences among programs. As soon as one sequence
        # has more than one query, all sequences go through the prefill kernel, in a single launch.
        if metadata.max_query_len == 1:
            return self._decode(query, key_cache, value_cache, tables, seq_lens, scale)
        starts = metadata.query_start_loc
        return self._prefill(query, key_cache, value_cache, tables, seq_lens, starts, scale)


def make_attention_backend(
    name: str, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device | str
) -> AttentionBackend:
    """Make the backend called `name`; see the table above for "auto"."""
    require_choice("attention_backend", name, CHOICES["attention_backend"])
    on_cpu = torch.device(device).type == "cpu"
    if name == "auto":
        numba_fits = on_cpu and dtype == torch.float32 and find_spec("numba") is not None
        name = "numba" if numba_fits else "torch" if on_cpu else "triton"
    if name == "triton":
        return TritonAttention()
    backend = NumbaAttention if name == "numba" else TorchAttention
    return backend(config, block_size, dtype, device)

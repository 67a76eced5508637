"""Paged attention from PyTorch operators: gather a sequence's blocks, then call PyTorch's own attention.

`scaled_dot_product_attention` (SDPA) wants the keys and values of a sequence side by side, and in a paged
cache they are not. So a step is cut into pieces, each of one sequence, and for each piece the blocks are
copied together. Block size 4, sequence A decoding its 7th token, sequence B prefilling the last 3 of 5::

                    query rows   blocks     copied              mask (0: may look)
    A   [7, 2]      0            7 2        k0 ... k6 (k7)      none: one query, it sees all 7
    B   [5, 3]      1 2 3        5 3        k0 ... k4 (...)     0 0 0 -inf -inf | 0 0 0 0 -inf | 0 0 0 0 0

A long prompt is cut into pieces of `PIECE` queries, each with the keys up to its last query: the mask stays
small, and keys which no query of a piece may see are not read. The copy is what paging costs here; a kernel
which follows the block table does without (`attention_kernels.py`). This backend needs PyTorch and nothing
else.

Paper: section 4.1. vLLM V1: `v1/attention/backends/cpu_attn.py` (its SDPA path).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minivllm.attention import AttentionMetadata
from minivllm.block_table import cdiv
from minivllm.config import ModelConfig
from minivllm.kv_cache import KVCache

PIECE = 256
"""The most query rows of one piece."""


@dataclass(frozen=True)
class Piece:
    """Up to `PIECE` consecutive queries of one sequence, and the keys which they may see."""

    # The queries' rows among the step's T tokens.
    rows: slice
    # (b,) int64: the sequence's blocks, up to the one which holds the last query's key.
    blocks: Tensor
    # n: keys which the last query may see.
    num_keys: int
    # (q * G, n) of 0 and -inf, see `causal_mask`; None for one query, which sees all.
    mask: Tensor | None


@dataclass(frozen=True)
class TorchPlan:
    """A step's work: the same for all layers, so worked out once."""

    pieces: list[Piece]


def causal_mask(num_queries: int, num_keys: int, group: int, dtype: torch.dtype) -> Tensor:
    """The mask of q queries, the last of n tokens: (q * group, n), 0 where a query may look, else -inf.

    The last query sees everything, so the mask is aligned at the bottom right. Each row stands `group` times:
    once for each query head which shares the KV head.
    """
    allowed = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    mask = torch.zeros(num_queries, num_keys, dtype=dtype).masked_fill_(~allowed, float("-inf"))
    return mask.repeat_interleave(group, dim=0)


class TorchAttention:
    """Paged attention from PyTorch operators: simple, on a CPU and on a GPU.

    Slow and obvious twin: `paged_attention_reference`.
    """

    name = "torch"

    def __init__(
        self,
        config: ModelConfig,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        piece: int = PIECE,
    ) -> None:
        self._block_size, self._num_kv_heads = block_size, config.num_key_value_heads
        self._group = config.num_queries_per_kv
        self._dtype, self._device, self._piece = dtype, torch.device(device), piece

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Cut the step into pieces: the same for all layers, so done once."""
        return replace(metadata, plan=TorchPlan(self.cut(metadata, range(len(metadata.seq_lens)))))

    def cut(self, metadata: AttentionMetadata, sequences: Iterable[int]) -> list[Piece]:
        """The pieces of some of the sequences, in their order."""
        starts, seq_lens = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        bounds = list(pairwise(starts))
        pieces = []
        for sequence in sequences:
            first, last = bounds[sequence]
            for start in range(first, last, self._piece):
                end = min(start + self._piece, last)
                num_keys = seq_lens[sequence] - (last - end)
                blocks = metadata.block_tables[sequence, : cdiv(num_keys, self._block_size)].long()
                mask = None
                if end - start > 1:
                    mask = causal_mask(end - start, num_keys, self._group, self._dtype).to(self._device)
                pieces.append(Piece(slice(start, end), blocks, num_keys, mask))
        return pieces

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
        plan = metadata.plan
        assert isinstance(plan, TorchPlan), "call prepare(metadata) once per step, forward once per layer"
        kv_cache.write(layer, key, value, metadata.slot_mapping)
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for piece in plan.pieces:
            output[piece.rows] = self.attend(query[piece.rows], kv_cache, layer, piece, scale)
        return output

    def attend(self, query: Tensor, kv_cache: KVCache, layer: int, piece: Piece, scale: float) -> Tensor:
        """Attention of one piece's queries, (q, Hq, D) in and out."""
        num_queries, _, head_dim = query.shape
        # (q, Hq, D) -> (Hkv, q * G, D): the G query heads which share a KV head become G times the queries of
        # that head, so K and V need not be repeated.
        grouped = query.view(num_queries, self._num_kv_heads, self._group, head_dim).transpose(0, 1)
        key, value = (
            cache[layer].index_select(0, piece.blocks).flatten(0, 1)[: piece.num_keys].transpose(0, 1)[None]
            for cache in (kv_cache.key, kv_cache.value)
        )  # (1, Hkv, n, D) each; SDPA is fast for four axes only
        attended = scaled_dot_product_attention(
            grouped.reshape(1, self._num_kv_heads, -1, head_dim),
            key,
            value,
            attn_mask=piece.mask,
            scale=scale,
        )  # (1, Hkv, q * G, D)
        return attended[0].unflatten(1, (num_queries, self._group)).transpose(0, 1).flatten(1, 2)

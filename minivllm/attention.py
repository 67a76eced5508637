"""Attention over a paged KV cache: the contract of the backends, and the obvious oracle.

One step packs the new tokens of all sequences into one row of tokens, decode and prefill side by side.
`AttentionMetadata` says which token belongs to which sequence. Block size 4, two sequences, the first
decoding its 7th token, the second prefilling the last 3 of 5 tokens (2 are in the cache already)::

    query rows        0 | 1  2  3           query_start_loc = [0, 1, 4]
    positions         6 | 2  3  4           seq_lens        = [7, 5]     KV length, new tokens included
    slot_mapping     10 | 22 23 12          block_tables    = [[7, 2], [5, 3]]

The queries of a sequence are its *last* `query_len` tokens, so its causal mask is aligned at the bottom
right. The second sequence (x: may look)::

    KV position   0 1 2 3 4
    query at 2    x x x . .
    query at 3    x x x x .
    query at 4    x x x x x

A backend first writes the new K and V into their slots, then attends to what the block table names; so a
token always sees itself, and a prompt cut into chunks gives what the whole prompt gives. The backends are in
`backends/`: `attention_torch.py` (PyTorch operators) and `attention_kernels.py` (our own kernels, and the
choice).

Paper: section 4.1 (PagedAttention) and figure 5. vLLM V1: `v1/attention/backend.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minivllm.kv_cache import KVCache


@dataclass(frozen=True)
class AttentionMetadata:
    """Where the T tokens of one step, from R sequences, sit in the batch and in the KV cache.

    Rows with `seq_lens` 0 and slots of -1 are padding; they occur only in captured CUDA graphs.
    """

    # (T,) int64: the slot each token's K and V go to.
    slot_mapping: Tensor
    # (R, max_blocks) int32: physical block ids, padded with 0 (never read).
    block_tables: Tensor
    # (R,) int32: KV length, this step's tokens included.
    seq_lens: Tensor
    # (R + 1,) int32: sequence r owns query rows [query_start_loc[r], query_start_loc[r + 1]).
    query_start_loc: Tensor
    # Two maxima as Python ints, so that the host need not ask the device for them.
    max_query_len: int
    max_seq_len: int
    # What a backend works out once per step, for all layers (see `AttentionBackend.prepare`).
    plan: object | None = None


def paged_attention_reference(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, metadata: AttentionMetadata, scale: float
) -> Tensor:
    """The oracle: softmax(q k^T * scale) v, one query token at a time, any dtype.

    Args:
        query: (T, Hq, D).
        key_cache: (B, S, Hkv, D), this step's keys already written.
        value_cache: (B, S, Hkv, D).
        metadata: which rows and blocks belong together; `plan` is not used.
        scale: factor on the scores, usually D ** -0.5.

    Returns:
        (T, Hq, D), zeros for padding rows.
    """
    block_size, num_kv_heads = key_cache.shape[1:3]
    compute = torch.promote_types(query.dtype, torch.float32)  # half precision adds up in float32
    output = torch.empty_like(query)
    starts = metadata.query_start_loc.tolist()
    for row, seq_len in enumerate(metadata.seq_lens.tolist()):
        table = metadata.block_tables[row].tolist()
        slots = [table[pos // block_size] * block_size + pos % block_size for pos in range(seq_len)]
        # Query heads h * G ... h * G + G - 1 share KV head h.
        group = query.shape[1] // num_kv_heads
        key = key_cache.flatten(0, 1)[slots].repeat_interleave(group, dim=1).to(compute)  # (n, Hq, D)
        value = value_cache.flatten(0, 1)[slots].repeat_interleave(group, dim=1).to(compute)
        for token in range(starts[row], starts[row + 1]):
            visible = seq_len - (starts[row + 1] - 1 - token)
            scores = torch.einsum("hd,nhd->hn", query[token].to(compute), key[:visible]) * scale
            output[token] = torch.einsum("hn,nhd->hd", scores.softmax(dim=-1), value[:visible])
    return output


class AttentionBackend(Protocol):
    """One way to compute paged attention. From step to step a backend keeps scratch memory, and no state."""

    name: str

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Do the work that is the same for all layers; return a copy of `metadata` with its `plan`."""

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
        """Write `key` and `value` (T, Hkv, D) into their slots, then attend; (T, Hq, D) in and out."""

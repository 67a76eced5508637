"""Attention over a paged KV cache: the contract, the obvious oracle, two backends and their choice.

One step packs the new tokens of all sequences into one row of tokens, decode and prefill side by side.
`AttentionMetadata` says which token belongs to whom. Block size 4, two sequences, the first decoding its
7th token, the second prefilling the last 3 of 5 tokens (2 are in the cache already)::

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
token always sees itself, and a prompt cut into chunks gives what the whole prompt gives.

Paper: section 4.1 (PagedAttention) and figure 5.
vLLM V1: `v1/attention/backend.py` (the contract), `v1/attention/backends/cpu_attn.py`, `triton_attn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minivllm.config import ATTENTION_BACKENDS, ModelConfig, require_choice
from minivllm.kv_cache import KVCache

WORKSPACE_BYTES = 1 << 20
"""Bytes of K (and as many of V) that one call gathers; only a single longer sequence takes more. What is
gathered should still be in a core's cache when it is read: 1 MiB is some 15% faster than 8 MiB."""
LENGTH_RATIO = 1.25
"""Longest to shortest sequence in a group; up to here padding costs less than another call."""
PREFILL_TILE = 256
"""Query rows that meet their keys at once, so that the mask stays small at any prompt length."""


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
    # The same maxima as Python ints, so that nobody has to ask the device for them.
    max_query_len: int
    max_seq_len: int
    # What a backend works out once a step, for all layers (see `AttentionBackend.prepare`).
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
    """One way to compute paged attention. A backend keeps no state from step to step but scratch memory."""

    name: str

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Do the work that is the same for all layers; return a copy of `metadata` with its `plan`."""
        ...

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
        ...


@dataclass(frozen=True)
class Gather:
    """Blocks of N sequences and their place in the workspace (part of a `TorchPlan`).

    The sequences are padded to one length n, the longest of them; each gets b = cdiv(n, S) blocks.
    """

    # (N * b,) int64: the blocks, sequence after sequence.
    blocks: Tensor
    # K and V, each (N * b, S, Hkv, D): where they are gathered to ...
    targets: tuple[Tensor, ...]
    # ... and the same memory seen as (N, Hkv, n, D), which is what SDPA reads.
    key: Tensor
    value: Tensor

    def run(self, key_cache: Tensor, value_cache: Tensor) -> None:
        """Copy the blocks of one layer, (B, S, Hkv, D), into the workspace."""
        torch.index_select(key_cache, 0, self.blocks, out=self.targets[0])
        torch.index_select(value_cache, 0, self.blocks, out=self.targets[1])


@dataclass(frozen=True)
class TorchPlan:
    """A step's work as `TorchAttention` does it: the same for all layers, so worked out once."""

    # Decoding sequences of similar length, attended to in one call: the rows (N,) int64 of their tokens,
    # what to gather, and a mask (N, 1, 1, n) of 0 and -inf (None if all have length n).
    decode: list[tuple[Tensor, Gather, Tensor | None]]
    # Each sequence with several new tokens: its rows, and what to gather (N = 1). None when nothing is
    # cached yet: then the new K and V are all there is.
    prefill: list[tuple[slice, Gather | None]]
    # (prefill_tile or fewer, max_seq_len): see `bottom_right_mask`.
    mask: Tensor | None


def group_by_length(num_blocks: list[int], max_blocks: int, ratio: float) -> list[list[int]]:
    """Sort sequences by length and cut them into groups that may share one padded tensor.

    In a group the longest sequence has at most `ratio` times the blocks of the shortest, and the padded
    group has at most `max_blocks` blocks (a single sequence may have more). Returns indices.

    Example::

        >>> group_by_length([3, 64, 2, 60, 4], max_blocks=1000, ratio=2.0)
        [[1, 3], [4, 0, 2]]
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(num_blocks)), key=lambda i: -num_blocks[i]):
        if groups:
            longest = num_blocks[groups[-1][0]]
            fits = (len(groups[-1]) + 1) * longest <= max_blocks
            if fits and longest <= ratio * num_blocks[index]:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def bottom_right_mask(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A causal mask (rows, columns) whose last row sees everything: 0 where allowed, else -inf.

    Cut from its bottom right corner, it is the right mask for any smaller number of queries and keys, so
    one is made a step and serves every tile of every sequence.
    """
    allowed = torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)
    return torch.zeros(rows, columns, dtype=dtype, device=device).masked_fill_(~allowed, float("-inf"))


class TorchAttention:
    """Paged attention from PyTorch operators: the fast path on a CPU, correct on any device.

    SDPA wants contiguous K and V and one length, and a paged batch has neither. So blocks are gathered
    into a workspace that is allocated once and shared by all layers (temporaries of this size, allocated
    and freed per call, cost more than the attention), and decoding sequences are grouped by length: one
    padded batch of 3 long and 29 short sequences takes ten times as long as four groups.
    Query heads that share a KV head are folded into the query length: K and V are never repeated.

    Slow and obvious twin: `paged_attention_reference`.
    """

    name = "torch"

    def __init__(
        self,
        config: ModelConfig,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        workspace_bytes: int = WORKSPACE_BYTES,
        prefill_tile: int = PREFILL_TILE,
    ) -> None:
        self._block_shape = (block_size, config.num_key_value_heads, config.head_dim)
        self._queries_per_kv = config.num_queries_per_kv
        self._dtype, self._device, self._prefill_tile = dtype, torch.device(device), prefill_tile
        elements_per_block = block_size * config.num_key_value_heads * config.head_dim
        self._max_blocks = max(1, workspace_bytes // (elements_per_block * dtype.itemsize))
        self._workspace = self._allocate(self._max_blocks)

    def _allocate(self, num_blocks: int) -> Tensor:
        """The workspace: (2, num_blocks, S, Hkv, D), K and V. Only what is used becomes resident."""
        return torch.empty(2, num_blocks, *self._block_shape, dtype=self._dtype, device=self._device)

    @property
    def workspace_nbytes(self) -> int:
        """Bytes of scratch memory held between steps."""
        return self._workspace.nbytes

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Sort the sequences into decode groups and prefills, and build what all layers share."""
        block_size = self._block_shape[0]
        starts, seq_lens = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        query_lens = [end - start for start, end in pairwise(starts)]
        num_blocks = [-(-seq_len // block_size) for seq_len in seq_lens]
        longest = max(num_blocks, default=0)
        if longest > self._workspace.shape[1]:
            self._workspace = self._allocate(longest)

        decode_rows = [row for row, query_len in enumerate(query_lens) if query_len == 1]
        decode_blocks = [num_blocks[row] for row in decode_rows]
        decode = []
        for group in group_by_length(decode_blocks, self._max_blocks, LENGTH_RATIO):
            rows = torch.tensor([decode_rows[index] for index in group], device=self._device)  # (N,)
            ends = metadata.seq_lens[rows]
            gather = self._plan_gather(metadata.block_tables[rows], max(ends.tolist()))
            decode.append((metadata.query_start_loc[rows].long(), gather, self._padding_mask(ends)))

        prefill: list[tuple[slice, Gather | None]] = []
        for row, query_len in enumerate(query_lens):
            if query_len > 1:
                is_fresh = query_len == seq_lens[row]
                tables = metadata.block_tables[row : row + 1]
                gather = None if is_fresh else self._plan_gather(tables, seq_lens[row])
                prefill.append((slice(starts[row], starts[row + 1]), gather))
        mask = None
        if any(gather is not None for _, gather in prefill):
            rows_of_tile = min(self._prefill_tile, metadata.max_query_len)
            mask = bottom_right_mask(rows_of_tile, metadata.max_seq_len, self._dtype, self._device)
        return replace(metadata, plan=TorchPlan(decode, prefill, mask))

    def _plan_gather(self, tables: Tensor, longest: int) -> Gather:
        """Plan the gathering of N sequences padded to `longest` tokens; `tables` (N, max_blocks)."""
        blocks_each = -(-longest // self._block_shape[0])
        # A shorter sequence's row of the table ends in padding, block 0: gathered for nothing, and masked.
        blocks = tables[:, :blocks_each].flatten().long()
        targets = self._workspace[:, : len(blocks)]
        # (2, N * b, S, Hkv, D) -> (2, N, b * S, Hkv, D) -> (2, N, Hkv, n, D), all the same memory
        padded = targets.unflatten(1, (len(tables), blocks_each)).flatten(2, 3)
        key, value = padded[:, :, :longest].transpose(2, 3)
        return Gather(blocks, targets.unbind(), key, value)

    def _padding_mask(self, ends: Tensor) -> Tensor | None:
        """(N, 1, 1, n) of 0 and -inf beyond each sequence's end (N,); None if no sequence is padded."""
        beyond = torch.arange(int(ends.max()), device=self._device) >= ends.view(-1, 1, 1, 1)
        if not beyond.any():
            return None
        return torch.zeros(beyond.shape, dtype=self._dtype, device=self._device).masked_fill_(
            beyond, float("-inf")
        )

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
        assert isinstance(plan, TorchPlan), "call prepare(metadata) once a step, then forward for each layer"
        kv_cache.write(layer, key, value, metadata.slot_mapping)
        key_cache, value_cache = kv_cache.key[layer], kv_cache.value[layer]
        # (T, Hq, D) seen as (T, Hkv, G, D): the G query heads of one KV head lie next to each other.
        query = query.unflatten(1, (-1, self._queries_per_kv))
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for tokens, gather, mask in plan.decode:
            gather.run(key_cache, value_cache)
            attended = scaled_dot_product_attention(
                query.index_select(0, tokens), gather.key, gather.value, attn_mask=mask, scale=scale
            )  # (N, Hkv, G, D): G stands where SDPA expects the query length
            output.index_copy_(0, tokens, attended)
        for rows, gather in plan.prefill:
            if gather is None:
                past = key[rows].transpose(0, 1), value[rows].transpose(0, 1)  # (Hkv, n, D) each
                output[rows] = self._attend_causal(query[rows], *past, None, scale)
            else:
                gather.run(key_cache, value_cache)
                past = gather.key[0], gather.value[0]
                output[rows] = self._attend_causal(query[rows], *past, plan.mask, scale)
        return output.flatten(1, 2)

    def _attend_causal(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Attention of one sequence: query (q, Hkv, G, D), key and value (Hkv, n, D), out as query.

        Without a mask q = n and SDPA's own causal mask is right. It is aligned at the top left, so with
        cached tokens before the first query the caller's bottom right mask takes its place, tile by tile.
        """
        query = query.permute(1, 2, 0, 3)  # (Hkv, G, q, D)
        # One K for the G heads that share it: `expand` repeats by a stride of 0, without a copy.
        key = key.unsqueeze(1).expand(-1, query.shape[1], -1, -1)  # (Hkv, G, n, D)
        value = value.unsqueeze(1).expand(-1, query.shape[1], -1, -1)
        if mask is None:
            output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
            return output.permute(2, 0, 1, 3)
        tiles = []
        num_queries, num_cached = query.shape[2], key.shape[2] - query.shape[2]
        for start in range(0, num_queries, self._prefill_tile):
            end = min(start + self._prefill_tile, num_queries)
            visible = num_cached + end  # keys that the tile's last query may see
            tile = scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, :visible],
                value[:, :, :visible],
                attn_mask=mask[start - end :, -visible:],
                scale=scale,
            )
            tiles.append(tile)
        return torch.cat(tiles, dim=2).permute(2, 0, 1, 3)


class TritonAttention:
    """Paged attention from the project's own Triton kernels, which read the blocks where they are.

    Nothing is gathered, so there is nothing to plan. Without a GPU the kernels run in Triton's
    interpreter: right, and thousands of times slower, so only for tests.
    """

    name = "triton"

    def __init__(self) -> None:
        # Imported here and not above: Triton is optional, and a plain CPU run never loads it.
        from kernels.paged_attention import paged_attention
        from kernels.prefill_attention import prefill_attention
        from kernels.reshape_and_cache import reshape_and_cache

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
        if metadata.max_query_len == 1:
            return self._decode(query, key_cache, value_cache, tables, seq_lens, scale)
        starts = metadata.query_start_loc
        return self._prefill(query, key_cache, value_cache, tables, seq_lens, starts, scale)


def make_attention_backend(
    name: str, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device | str
) -> AttentionBackend:
    """Choose the backend: "torch", "triton", or "auto" (triton on CUDA, torch elsewhere)."""
    require_choice("attention_backend", name, ATTENTION_BACKENDS)
    if name == "auto":
        name = "triton" if torch.device(device).type == "cuda" else "torch"
    if name == "triton":
        return TritonAttention()
    return TorchAttention(config, block_size, dtype, device)

"""Paged attention from PyTorch operators: gather the blocks, then call PyTorch's own attention.

`scaled_dot_product_attention` (SDPA) wants keys and values side by side and one length for all, and a paged
batch has neither. So a step is cut into calls that suit it, block size 4::

    decode   A 7 tokens  [7, 2]       sorted by length, similar ones padded to one length,
             B 6 tokens  [5, 3]   ->  blocks 7 2 | 5 3 copied into the workspace, B's last slots masked,
             C 90 tokens [...]        one call for A and B, another one for C
    prefill  D 5 new of 5         ->  nothing is cached: K and V of this step are all there is
             E 5 new of 9         ->  blocks gathered, tiles of query rows, a mask aligned at the bottom right

The copy is what paging costs here; a kernel that follows the block table does without
(`attention_kernels.py`). This backend runs on every device, and prefill on a CPU always goes this way.

Paper: section 4.1. vLLM V1: `v1/attention/backends/cpu_attn.py` (its SDPA path).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minivllm.attention import AttentionMetadata
from minivllm.config import ModelConfig
from minivllm.kv_cache import KVCache

WORKSPACE_BYTES = 1 << 20
"""Bytes of K (and as many of V) that one call gathers; only a single longer sequence takes more. What is
gathered should still be in a core's cache when it is read: 1 MiB is some 15% faster than 8 MiB."""
LENGTH_RATIO = 1.25
"""Longest to shortest sequence in a group; up to here padding costs less than another call."""
PREFILL_TILE = 256
"""Query rows that meet their keys at once, so that the mask stays small at any prompt length."""


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

    # (N,) int64: the rows, among the step's T tokens, of the sequences with one new token ...
    decode_tokens: Tensor
    # ... and what `plan_decode` worked out for them. Here: groups of similar length, attended to in one call
    # each: what to gather, and a mask (n_group, 1, 1, n) of 0 and -inf (None if all have length n).
    decode: Any
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
        starts, seq_lens = metadata.query_start_loc.tolist(), metadata.seq_lens.tolist()
        query_lens = [end - start for start, end in pairwise(starts)]
        rows = [row for row, query_len in enumerate(query_lens) if query_len == 1]
        rows, decode = self.plan_decode(metadata, rows)
        decode_tokens = torch.tensor([starts[row] for row in rows], dtype=torch.int64, device=self._device)

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
        return replace(metadata, plan=TorchPlan(decode_tokens, decode, prefill, mask))

    def plan_decode(self, metadata: AttentionMetadata, rows: list[int]) -> tuple[list[int], Any]:
        """Plan the sequences `rows`, which have one query each: in which order, and what `decode` needs."""
        block_size = self._block_shape[0]
        num_blocks = [-(-seq_len // block_size) for seq_len in metadata.seq_lens[rows].tolist()]
        groups = group_by_length(num_blocks, self._max_blocks, LENGTH_RATIO)
        plan = []
        for group in groups:
            members = torch.tensor([rows[index] for index in group], device=self._device)
            ends = metadata.seq_lens[members]
            gather = self._plan_gather(metadata.block_tables[members], max(ends.tolist()))
            plan.append((gather, self._padding_mask(ends)))
        return [rows[index] for group in groups for index in group], plan

    def _plan_gather(self, tables: Tensor, longest: int) -> Gather:
        """Plan the gathering of N sequences padded to `longest` tokens; `tables` (N, max_blocks)."""
        blocks_each = -(-longest // self._block_shape[0])
        # A shorter sequence's row of the table ends in padding, block 0: gathered for nothing, and masked.
        blocks = tables[:, :blocks_each].flatten().long()
        if len(blocks) > self._workspace.shape[1]:  # one sequence that is longer than all before
            self._workspace = self._allocate(len(blocks))
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
        # Every row of it is written: a token belongs to a decode or to a prefill.
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if len(plan.decode_tokens):
            tokens = query.index_select(0, plan.decode_tokens)  # (N, Hq, D)
            attended = self.decode(tokens, key_cache, value_cache, plan.decode, scale)
            output.index_copy_(0, plan.decode_tokens, attended)
        # (T, Hq, D) seen as (T, Hkv, G, D): the G query heads of one KV head lie next to each other.
        query = query.unflatten(1, (-1, self._queries_per_kv))
        grouped_output = output.unflatten(1, (-1, self._queries_per_kv))
        for rows, gather in plan.prefill:
            if gather is None:
                past = key[rows].transpose(0, 1), value[rows].transpose(0, 1)  # (Hkv, n, D) each
                grouped_output[rows] = self._attend_causal(query[rows], *past, None, scale)
            else:
                gather.run(key_cache, value_cache)
                past = gather.key[0], gather.value[0]
                grouped_output[rows] = self._attend_causal(query[rows], *past, plan.mask, scale)
        return output

    def decode(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: Any, scale: float
    ) -> Tensor:
        """Attend for one query of each of N sequences, (N, Hq, D) in and out, over one layer's cache."""
        grouped = query.unflatten(1, (-1, self._queries_per_kv))  # (N, Hkv, G, D)
        attended = []
        for gather, mask in plan:
            start = sum(len(part) for part in attended)
            members = grouped[start : start + len(gather.key)]
            gather.run(key_cache, value_cache)
            # G stands where SDPA expects the query length.
            attended.append(
                scaled_dot_product_attention(members, gather.key, gather.value, attn_mask=mask, scale=scale)
            )
        return torch.cat(attended).flatten(1, 2)

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

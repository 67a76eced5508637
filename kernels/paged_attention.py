"""Decode attention over a paged KV cache, lesson two: grouped heads, wide tiles, split-KV.

The mathematics (S, m, l, acc, alpha) and the block table are those of `paged_attention_naive.py`; read that
first. Decode is bound by memory: it reads the whole KV of a sequence to compute one token. So the aim is to
read each byte once, in large pieces, from all multiprocessors at the same time. Three ideas do it:

**1. Grouped heads.** With grouped-query attention G query heads share one KV head. One program takes the
whole group, so that K is read once instead of G times, and the scores become a matrix product::

       q  (BLOCK_H, D)         K^T (D, BLOCK_N)          S (BLOCK_H, BLOCK_N)
       head 0  [......]      key 0   1   2  ..         [ S00 S01 S02 .. ]
       head 1  [......]   x  [ |   |   |      ]   =    [ S10 S11 S12 .. ]     tl.dot: the tensor cores
       head 2  [......]      [ |   |   |      ]        [ S20 S21 S22 .. ]
       padding [000000]                                [  0   0   0  .. ]     never stored

A tensor core works on at least 16 rows. For G = 3 thirteen of them are padding, and it still pays: published
measurements put kernels without tensor cores near 50% of the memory bandwidth, with them above 80%.

**2. Tiles decoupled from blocks.** One turn of the loop handles BLOCK_N keys, at any block size S of the KV
cache. Every key looks up its own block, so a tile may span several blocks or be part of one::

    S = 4, BLOCK_N = 8, block table [7, 2, 5]
    position n       0  1  2  3  4  5  6  7 | 8  9 ..
    n // S           0  0  0  0  1  1  1  1 | 2  2
    block            7  7  7  7  2  2  2  2 | 5  5      one load of 8 (cached) block numbers
    n % S            0  1  2  3  0  1  2  3 | 0  1

**3. Split-KV.** One sequence with 8 KV heads is 8 programs; an H100 has 132 multiprocessors. So the tokens
of a sequence are divided among NUM_SPLITS programs. Each writes its (m, l, acc); `combine.py` merges them::

    tokens   0 ........ 1023 | 1024 ...... 2047 | 2048 ...... 2900
    program  split 0           split 1            split 2             -> combine -> O

Small print. exp(x) is computed as exp2(x * log2 e), which is one instruction, so m is in units of log 2. The
block table is read under the same mask as the keys: its padding may hold anything and is not followed.

Paper: section 4.1. vLLM V1: `vllm/v1/attention/ops/triton_unified_attention.py` (its "3D" kernel).
"""
# ruff: noqa: E741  (l is the derivation's letter)

import torch

from .combine import combine
from .common import check_attention, needs_float32_dot, tl, triton
from .heuristics import SWITCHES, Switches, Tiles, chip_of, choose_num_splits, decode_tiles, whole_blocks
from .online_softmax import attend
from .paged_attention_naive import paged_attention_naive, paged_attention_reference

__all__ = ["paged_attention", "paged_attention_naive", "paged_attention_reference"]

# With more rows acc would cost more in registers than is saved in reads.
MAX_HEADS_PER_PROGRAM = 32  # larger groups (Falcon: 71 query heads, 1 KV head) are cut into several


# The width of the block tables changes from step to step; 1 or a multiple of 16 is no reason to compile anew.
@triton.jit(do_not_specialize=["table_stride"])
def _paged_attention_kernel(
    out_ptr,  # (R, Hq, D); written if NUM_SPLITS == 1
    part_acc_ptr,  # (R, Hq, NUM_SPLITS, D) float32; written if NUM_SPLITS > 1, as are the next two
    part_m_ptr,  # (R, Hq, NUM_SPLITS) float32
    part_l_ptr,  # (R, Hq, NUM_SPLITS) float32
    query_ptr,  # (R, Hq, D)
    key_cache_ptr,  # (B, S, Hkv, D)
    value_cache_ptr,  # (B, S, Hkv, D)
    block_tables_ptr,  # (R, max_blocks)
    seq_lens_ptr,  # (R,)
    scale,
    out_stride_seq,
    out_stride_head,
    query_stride_seq,
    query_stride_head,
    key_stride_block,
    key_stride_slot,
    key_stride_head,
    value_stride_block,
    value_stride_slot,
    value_stride_head,
    table_stride,
    S: tl.constexpr,
    G: tl.constexpr,  # query heads for each KV head
    D: tl.constexpr,
    HEADS: tl.constexpr,  # query heads this program handles: G, or part of a large group
    NUM_SPLITS: tl.constexpr,
    BLOCK_H: tl.constexpr,  # HEADS padded to a power of two, at least 16
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # D padded to a power of two, at least 16
    MIN_PER_SPLIT: tl.constexpr,  # tokens, a multiple of BLOCK_N; this and the next two: `Switches`
    PEEL: tl.constexpr,
    BY_BLOCK: tl.constexpr,
    DOT_F32: tl.constexpr,
):
    """One program: one split of one sequence, for the query heads of one KV head.

    The grid is (R, Hkv * HEAD_TILES, NUM_SPLITS). The program keeps q and its (m, l, acc) in registers,
    walks over its tokens in tiles of BLOCK_N, and writes either the output or its partial result.
    """
    HEAD_TILES: tl.constexpr = (G + HEADS - 1) // HEADS
    seq = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1) // HEAD_TILES
    split = tl.program_id(2)

    # Which tokens [low, high) this split handles; whole tiles, except at the end of the sequence.
    seq_len = tl.load(seq_lens_ptr + seq)
    # Example, seq_len 2900, BLOCK_N 64, 4 splits: 46 tiles, 12 per split = 768 tokens, so [0, 768),
    # [768, 1536), [1536, 2304), [2304, 2900). A split beyond the end has low = high and an empty loop.
    tiles = (seq_len + BLOCK_N - 1) // BLOCK_N
    tokens_per_split = (tiles + NUM_SPLITS - 1) // NUM_SPLITS * BLOCK_N
    if MIN_PER_SPLIT > 0:
        tokens_per_split = tl.maximum(tokens_per_split, MIN_PER_SPLIT)
    low = split * tokens_per_split
    high = tl.maximum(low, tl.minimum(low + tokens_per_split, seq_len))

    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    # Rows 0 .. HEADS-1 are heads, the others padding up to 16: they compute on zeros and are never stored.
    head_in_group = tl.program_id(1) % HEAD_TILES * HEADS + h
    real_head = (h < HEADS) & (head_in_group < G)
    head = kv_head * G + head_in_group
    query = query_ptr + seq * query_stride_seq + head[:, None] * query_stride_head + d[None, :]
    head_mask = real_head[:, None] & (d < D)[None, :]
    q = tl.load(query, mask=head_mask, other=0.0)  # (BLOCK_H, BLOCK_D)
    if DOT_F32:
        q = q.to(tl.float32)

    # float32 whatever the inputs are: thousands of small numbers are added up.
    m = tl.full([BLOCK_H], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BLOCK_H], dtype=tl.float32)
    acc = tl.zeros([BLOCK_H, BLOCK_D], dtype=tl.float32)

    table = block_tables_ptr + seq * table_stride
    key = key_cache_ptr + kv_head * key_stride_head + d[None, :]
    value = value_cache_ptr + kv_head * value_stride_head + d[None, :]

    # The newest token sees all tokens, so the last position seen is the last one there is.
    position = tl.zeros([1], dtype=tl.int32) + (high - 1)
    rest = low
    if PEEL:
        # Whole tiles need no mask, so only the last, partial one gets it.
        rest = high // BLOCK_N * BLOCK_N
        m, l, acc = attend(
            m, l, acc, q, low, rest, position, scale, key, value, table,
            key_stride_block, key_stride_slot, value_stride_block, value_stride_slot,
            S, D, BLOCK_N, BLOCK_D, False, BY_BLOCK, DOT_F32,
        )  # fmt: skip
    m, l, acc = attend(
        m, l, acc, q, rest, high, position, scale, key, value, table,
        key_stride_block, key_stride_slot, value_stride_block, value_stride_slot,
        S, D, BLOCK_N, BLOCK_D, True, BY_BLOCK, DOT_F32,
    )  # fmt: skip

    if NUM_SPLITS == 1:
        # An empty sequence (padding of the batch) has l = 0 and acc = 0: its output is 0, not 0 / 0.
        o = acc / tl.where(l > 0, l, 1.0)[:, None]
        out = out_ptr + seq * out_stride_seq + head[:, None] * out_stride_head + d[None, :]
        tl.store(out, o, mask=head_mask)
    else:
        num_heads = tl.num_programs(1) // HEAD_TILES * G
        # The partials are contiguous, so their addresses follow from the sizes and need no strides.
        row = (seq * num_heads + head) * NUM_SPLITS + split  # (BLOCK_H,)
        tl.store(part_m_ptr + row, m, mask=real_head)
        tl.store(part_l_ptr + row, l, mask=real_head)
        if low < high:  # combine reads acc only where l > 0: an empty split need not write its zeros
            tl.store(part_acc_ptr + row[:, None] * D + d[None, :], acc, mask=head_mask)


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    *,
    num_splits: int | None = None,
    tiles: Tiles | None = None,
    switches: Switches = SWITCHES,
) -> torch.Tensor:
    """Attention of one query token per sequence over its tokens in the paged KV cache.

    Nothing here waits for the device, and the launch depends on shapes alone, so the call can be captured in
    a CUDA graph and replayed with other lengths and other block tables.

    Args:
        query: (R, Hq, D), the newest token of each sequence; its own KV is already in the cache.
        key_cache: (B, S, Hkv, D), possibly a non-contiguous view; the last axis is contiguous.
        value_cache: (B, S, Hkv, D).
        block_tables: (R, max_blocks) int32; entries beyond a sequence's length are never looked at.
        seq_lens: (R,) int32, the query's own token included; a sequence of length 0 gives zeros.
        scale: usually D ** -0.5.
        num_splits: parts each sequence is cut into; None lets `choose_num_splits` decide. For a given number
            the result of a sequence is the same, to the last bit, in every batch.
        tiles: launch configuration; None lets `decode_tiles` decide.
        switches: variants of the kernel that compute the same.

    Returns:
        (R, Hq, D), contiguous, in the dtype of `query`.
    """
    check_attention(query, key_cache, value_cache, block_tables, seq_lens)
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    num_seqs, num_heads = seq_lens.shape[0], query.shape[1]
    if query.shape[0] != num_seqs:
        raise ValueError(f"query must have one token per sequence: {num_seqs} rows, got {query.shape[0]}.")
    if num_splits is not None and num_splits < 1:
        raise ValueError(f"num_splits must be at least 1, got {num_splits}.")
    out = query.new_empty(num_seqs, num_heads, head_dim)
    if num_seqs == 0:
        return out

    group = num_heads // num_kv_heads
    heads = min(group, MAX_HEADS_PER_PROGRAM)
    num_programs = num_kv_heads * triton.cdiv(group, heads)  # for each sequence
    chip = chip_of(query.device)
    tiles = tiles or decode_tiles(chip, head_dim, query.element_size())
    if num_splits is None:
        num_splits = choose_num_splits(chip, num_seqs * num_programs, block_tables.shape[1] * block_size)
    # Partials cost 2 * R * Hq * splits * (D + 2) * 4 bytes, written and read; one split needs none.
    parts = (None, None, None)
    if num_splits > 1:
        part_acc = query.new_empty(num_seqs, num_heads, num_splits, head_dim, dtype=torch.float32)
        part_m = query.new_empty(num_seqs, num_heads, num_splits, dtype=torch.float32)
        parts = (part_acc, part_m, torch.empty_like(part_m))

    _paged_attention_kernel[(num_seqs, num_programs, num_splits)](
        out,
        *parts,
        query,
        key_cache,
        value_cache,
        block_tables,
        seq_lens,
        scale,
        *out.stride()[:2],
        *query.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        block_tables.stride(0),
        S=block_size,
        G=group,
        D=head_dim,
        HEADS=heads,
        NUM_SPLITS=num_splits,
        BLOCK_H=max(tiles.block_m, triton.next_power_of_2(heads)),
        BLOCK_N=tiles.block_n,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        MIN_PER_SPLIT=triton.cdiv(switches.min_tokens_per_split, tiles.block_n) * tiles.block_n,
        PEEL=switches.peel,
        BY_BLOCK=switches.by_block and whole_blocks(key_cache, value_cache),
        DOT_F32=needs_float32_dot(query.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return combine(*parts, out) if num_splits > 1 else out

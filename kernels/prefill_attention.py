"""Attention of many queries per sequence over the paged KV cache: prefill, chunked prefill, mixed batches.

The scheduler knows no phases: a step may run all 37 tokens of one prompt, tokens 512..1023 of another and
one new token of a third. All queries are packed into one (T, Hq, D) tensor, and `query_start_loc` says where
the queries of each sequence begin. They are its *last* tokens; each sees itself and all tokens before it::

    query_start_loc = [0, 3, 4]     seq_lens = [5, 6]         keys ->
                                          j =   0  1  2  3  4  5
    sequence 0: 3 queries, context 2     t=0    x  x  x  .  .        position 2 = context + 0
                                         t=1    x  x  x  x  .        position 3
                                         t=2    x  x  x  x  x        position 4
    sequence 1: 1 query,   context 5     t=3    x  x  x  x  x  x     a decode row is the same thing

    context = seq_len - query_len (0 for a fresh prompt);   query at position i sees key j   if j <= i

All K and V, those of this step included, are read through the block table: `reshape_and_cache` wrote them
just before. So prefill with and without context is one code path.

**Rows.** As in `paged_attention.py` the G query heads of a KV head become rows of one matrix product. Here
BLOCK_Q tokens of G heads each fill BLOCK_M rows (G = 3, BLOCK_M = 16: five tokens, one row empty)::

    row     0       1       2       3       4       5      ...    14      15
    token   0       0       0       1       1       1      ...    4       -
    head    0       1       2       0       1       2      ...    2       -

**Which tokens?** A program has to find its sequence, but how many tiles each sequence has is known only on
the device; asking would stop the host in every layer. So launch an upper bound. Sequence r owns the tiles
from

    first_tile[r] = query_start_loc[r] // BLOCK_Q + r

up to the next sequence's first: at least cdiv(query_len, BLOCK_Q) of them, and T // BLOCK_Q + R in all. A
program counts the first tiles up to its own, and returns if its tile is past the queries of its sequence::

    BLOCK_Q = 2, query_start_loc = [0, 3, 4]:  first_tile = [0, 2]     launched: 4 // 2 + 2 = 4
    program 0: sequence 0, tokens 0 1   program 1: sequence 0, token 2
    program 2: sequence 1, token 3      program 3: nothing to do

**Cost.** A query tile reads every key up to its last query once, for all BLOCK_M rows. So a prompt of n
tokens reads K and V about n / (2 * BLOCK_Q) times over, as much as it can from the L2 cache. Per key read
there are BLOCK_M products instead of decode's G: arithmetic is the limit, and larger tiles mean fewer reads::

    n = 512, BLOCK_Q = 16:   32 tiles of queries; the first reads 16 keys, the last 512, the mean is 264

Paper: section 4.3 (prompt and generation phase). vLLM V1:
`vllm/v1/attention/ops/triton_unified_attention.py` (its "2D" kernel, where the tile arithmetic is from).
"""
# ruff: noqa: E741  (l is the derivation's letter)

import torch

from .common import check_attention, check_query_start_loc, needs_float32_dot, tl, triton
from .heuristics import SWITCHES, Switches, Tiles, chip_of, prefill_tiles, whole_blocks
from .online_softmax import attend


def prefill_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same in plain torch, one sequence at a time, with the whole mask written out. -> (T, Hq, D)."""
    block_size, group = key_cache.shape[1], query.shape[1] // key_cache.shape[2]
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)  # (T, Hq, D)
    # Leaves the GPU if there is one: a twin may wait, the kernel may not.
    starts = query_start_loc.tolist()
    for r, n in enumerate(seq_lens.tolist()):
        q = query[starts[r] : starts[r + 1]].float()  # (t, Hq, D)
        j = torch.arange(n, device=query.device)
        i = torch.arange(n - len(q), n, device=query.device)[:, None]  # positions of the queries
        blocks = block_tables[r, j // block_size].long()
        k = key_cache[blocks, j % block_size].float().repeat_interleave(group, dim=1)  # (n, Hq, D)
        v = value_cache[blocks, j % block_size].float().repeat_interleave(group, dim=1)
        scores = torch.einsum("thd,nhd->htn", q, k) * scale
        p = scores.masked_fill(j > i, float("-inf")).softmax(-1)  # (t, n) of the mask: causal
        out[starts[r] : starts[r + 1]] = torch.einsum("htn,nhd->thd", p, v).to(query.dtype)
    return out


@triton.jit
def find_tile(query_start_loc_ptr, num_seqs, tile, LANES_R: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Which sequence a tile belongs to, and which of its queries is the tile's first.

    `first_tile` of the module's docstring is increasing, so the sequence is the last one that is reached.

    Example from there, BLOCK_Q = 2, query_start_loc = [0, 3, 4], first_tile = [0, 2], tile 1: reached are
    [True, False], so seq = 1 - 1 = 0 and first_token = (1 - 0) * 2 = 2. Tile 3: reached are both, seq = 1,
    first_token = (3 - 2) * 2 = 2, and as sequence 1 has one query the program ends.

    Args:
        num_seqs: R, at most LANES_R.
        tile: number of this program's tile, 0 .. T // BLOCK_Q + R - 1.

    Returns:
        The sequence, where its queries start in the packed batch, how many they are, and the first of them
        that this tile handles, counted from 0 in its sequence. May be beyond the last: nothing to do.
    """
    # All R starts at once: one load, and no loop. (vLLM bisects, which needs no LANES_R.)
    r = tl.arange(0, LANES_R)
    starts = tl.load(query_start_loc_ptr + r, mask=r < num_seqs, other=0)
    reached = (r < num_seqs) & (starts // BLOCK_Q + r <= tile)
    # Counting from 0, the last sequence that is reached is one less than the number of those reached.
    seq = tl.sum(reached.to(tl.int32), axis=0) - 1
    query_start = tl.load(query_start_loc_ptr + seq)
    query_len = tl.load(query_start_loc_ptr + seq + 1) - query_start
    first_token = (tile - (query_start // BLOCK_Q + seq)) * BLOCK_Q
    return seq, query_start, query_len, first_token


# Triton compiles a kernel anew where an integer argument is 1, or stops or starts to be a multiple of 16.
# These two change from step to step, nothing gets faster by knowing them, and compiling takes seconds.
@triton.jit(do_not_specialize=["num_seqs", "table_stride"])
def _prefill_kernel(
    out_ptr,  # (T, Hq, D)
    query_ptr,  # (T, Hq, D)
    key_cache_ptr,  # (B, S, Hkv, D)
    value_cache_ptr,  # (B, S, Hkv, D)
    block_tables_ptr,  # (R, max_blocks)
    seq_lens_ptr,  # (R,)
    query_start_loc_ptr,  # (R + 1,)
    num_seqs,
    scale,
    out_stride_token,
    out_stride_head,
    query_stride_token,
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
    LANES_R: tl.constexpr,  # a power of two, at least the number of sequences
    BLOCK_Q: tl.constexpr,  # query tokens a program handles
    BLOCK_M: tl.constexpr,  # rows: at least BLOCK_Q * HEADS
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # D padded to a power of two, at least 16
    PEEL: tl.constexpr,  # this and the next: `Switches`
    BY_BLOCK: tl.constexpr,
    DOT_F32: tl.constexpr,
):
    """One program: BLOCK_Q neighbouring queries of one sequence, for the heads of one KV head.

    It holds its queries and its (m, l, acc) in registers from beginning to end, and walks over the keys in
    tiles of BLOCK_N; nothing between query and output is ever written to memory.

    The grid is (tiles of queries, Hkv * HEAD_TILES). Sizes that decide the shape of a tile are constexpr, as
    Triton demands.
    """
    # 1 as a rule. A group of more heads than rows (71 heads on one KV head) is cut into several programs.
    HEAD_TILES: tl.constexpr = (G + HEADS - 1) // HEADS
    tile = tl.program_id(0)
    kv_head = tl.program_id(1) // HEAD_TILES

    seq, query_start, query_len, first_token = find_tile(
        query_start_loc_ptr, num_seqs, tile, LANES_R, BLOCK_Q
    )
    # The grid is an upper bound, so some programs have no query. They leave before they read any key.
    if first_token >= query_len:
        return
    seq_len = tl.load(seq_lens_ptr + seq)
    context = seq_len - query_len

    # The rows of the picture: HEADS consecutive rows are one token's heads. Tokens and heads share the axis
    # because the tensor cores want at least 16 rows, and a short chunk alone has not as many tokens.
    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = first_token + row // HEADS
    head_in_group = tl.program_id(1) % HEAD_TILES * HEADS + row % HEADS
    # Empty are: the rest that HEADS does not divide, tokens past the sequence's last query (they belong to
    # the next sequence!), and heads past the group's last. They compute on zeros and are never stored.
    real_row = (row < BLOCK_Q * HEADS) & (token < query_len) & (head_in_group < G)
    row_mask = real_row[:, None] & (d < D)[None, :]
    position = context + token  # (BLOCK_M,)
    # Two positions of one token: `position` in its sequence, which the mask needs, and `packed_token` in
    # the batch, which the address needs. 64 bits, as a stride is multiplied next.
    packed_token = (query_start + token).to(tl.int64)
    head = kv_head * G + head_in_group
    query = query_ptr + (packed_token * query_stride_token + head * query_stride_head)[:, None] + d[None, :]
    # Loaded once, for all key tiles. Example, D = 80: BLOCK_D = 128, and the 48 lanes of padding are 0 here
    # and in K, so that they add nothing to the scores.
    q = tl.load(query, mask=row_mask, other=0.0)  # (BLOCK_M, BLOCK_D)
    if DOT_F32:
        q = q.to(tl.float32)

    # The end of the keys. The last query sees the most, so nothing beyond its position is loaded: nearly half
    # of the scores of a fresh prompt are skipped. Example, context 32, first_token 16, BLOCK_Q 16: keys
    # 0 .. 63.
    high = tl.minimum(context + first_token + BLOCK_Q, seq_len)

    # State of the online softmax, a row each: largest score, sum of exponentials, weighted sum of values.
    # float32 whatever the inputs are: hundreds of small numbers are added up.
    m = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    l = tl.zeros([BLOCK_M], dtype=tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)

    # Bases of the addresses: this sequence's row of the table, this head's keys and values of slot 0.
    table = block_tables_ptr + seq.to(tl.int64) * table_stride
    key = key_cache_ptr + kv_head * key_stride_head + d[None, :]
    value = value_cache_ptr + kv_head * value_stride_head + d[None, :]

    # `high` is known on the device only, so this is a loop at run time; no two programs need take the same.
    rest = 0
    if PEEL:
        # All rows see the keys up to the first query's own: whole tiles of those need no mask.
        rest = (context + first_token + 1) // BLOCK_N * BLOCK_N
        m, l, acc = attend(
            m, l, acc, q, 0, rest, position, scale, key, value, table,
            key_stride_block, key_stride_slot, value_stride_block, value_stride_slot,
            S, D, BLOCK_N, BLOCK_D, False, BY_BLOCK, DOT_F32,
        )  # fmt: skip
    # Causal: row i sees the keys j <= position[i], which covers j < high too, as position < high.
    m, l, acc = attend(
        m, l, acc, q, rest, high, position, scale, key, value, table,
        key_stride_block, key_stride_slot, value_stride_block, value_stride_slot,
        S, D, BLOCK_N, BLOCK_D, True, BY_BLOCK, DOT_F32,
    )  # fmt: skip

    # Divided once at the end instead of at each tile. Rows that are not real have seen nothing: l = 0.
    o = acc / tl.where(l > 0, l, 1.0)[:, None]
    out = out_ptr + (packed_token * out_stride_token + head * out_stride_head)[:, None] + d[None, :]
    tl.store(out, o, mask=row_mask)


def prefill_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    query_start_loc: torch.Tensor,
    scale: float,
    *,
    tiles: Tiles | None = None,
    switches: Switches = SWITCHES,
) -> torch.Tensor:
    """Causal attention of the packed queries; the queries are the last tokens of each sequence.

    Args:
        query: (T, Hq, D), packed; the KV of these tokens is already in the cache.
        key_cache: (B, S, Hkv, D), possibly a non-contiguous view; the last axis is contiguous.
        value_cache: (B, S, Hkv, D).
        block_tables: (R, max_blocks) int32; entries beyond a sequence's length are never looked at.
        seq_lens: (R,) int32, tokens of each sequence including this step's.
        query_start_loc: (R + 1,) int32; the queries of sequence r are the tokens
            [query_start_loc[r], query_start_loc[r + 1]).
        scale: usually D ** -0.5.
        tiles: launch configuration; None lets `prefill_tiles` decide.
        switches: variants of the kernel that compute the same.

    Returns:
        (T, Hq, D), contiguous, in the dtype of `query`; zeros for tokens that belong to no sequence.

    Raises:
        TypeError: a dtype is not supported, or query and KV cache differ in theirs.
        ValueError: shapes do not fit together, `query_start_loc` does not cut the T queries into R
            sequences, or a sequence has more queries than tokens (values are looked at on the CPU only).
    """
    check_attention(query, key_cache, value_cache, block_tables, seq_lens)
    num_seqs = seq_lens.shape[0]
    check_query_start_loc(query_start_loc, query, seq_lens)
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    num_tokens, num_heads = query.shape[:2]
    # Zeros, not empty: padding tokens at the end of the batch belong to no program, and must not be NaN.
    out = query.new_zeros(num_tokens, num_heads, head_dim)
    if num_seqs == 0 or num_tokens == 0:
        return out

    group = num_heads // num_kv_heads
    tiles = tiles or prefill_tiles(
        chip_of(query.device), head_dim, query.element_size(), num_tokens / num_seqs
    )
    # G = 3, BLOCK_M = 64: heads = 3, BLOCK_Q = 21, 63 rows in use. G = 71, BLOCK_M = 64: heads = 64,
    # BLOCK_Q = 1, two programs for a KV head, the second with 7 heads.
    heads = min(group, tiles.block_m)
    block_q = tiles.block_m // heads
    # From shapes alone; the values of query_start_loc stay on the device. See the docstring for the bound.
    grid = (num_tokens // block_q + num_seqs, num_kv_heads * triton.cdiv(group, heads))
    _prefill_kernel[grid](
        out,
        query,
        key_cache,
        value_cache,
        block_tables,
        seq_lens,
        query_start_loc,
        num_seqs,
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
        LANES_R=max(64, triton.next_power_of_2(num_seqs)),  # 64 for most: each value is another kernel
        BLOCK_Q=block_q,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        PEEL=switches.peel,
        BY_BLOCK=switches.by_block and whole_blocks(key_cache, value_cache),
        DOT_F32=needs_float32_dot(query.dtype),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out

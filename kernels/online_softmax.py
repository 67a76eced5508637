"""The pieces of device code that both attention kernels are made of.

`paged_attention_naive.py` writes the online softmax out for one query. Here it is for a tile of BLOCK_M query
rows and BLOCK_N keys at once, with the same letters: m, l and acc have one entry (or one row) per query row::

                keys of this tile
                n0   n1   n2  ..
    row 0  m  [ S00  S01  S02 .. ]        m (BLOCK_M,)   l (BLOCK_M,)   acc (BLOCK_M, BLOCK_D)
    row 1  m  [ S10  S11  S12 .. ]
    row 2  m  [ S20  -inf -inf   ]        this row does not see all of these keys

A function decorated with `@triton.jit` and called from a kernel is inlined by the compiler: it costs nothing
on a GPU.

Source: Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691, algorithm 1.
"""
# ruff: noqa: E741  (l is the derivation's letter)

from .common import tl, triton


@triton.jit
def load_keys_and_values(
    key,  # (1, BLOCK_D) pointers to key_cache[0, 0, kv_head, :]
    value,  # the same for value_cache
    table,  # pointer to this sequence's row of the block tables
    start,  # position of the tile's first key
    high,  # the first position that does not exist
    key_stride_block,
    key_stride_slot,
    value_stride_block,
    value_stride_slot,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,  # whether the tile may reach beyond `high`
    BY_BLOCK: tl.constexpr,  # see `Switches.by_block`
    DOT_F32: tl.constexpr,
):
    """Gather one tile of K and V, each (BLOCK_N, BLOCK_D), through the block table; 0 where there is no key.

    The block table is read under the mask too: its padding may hold anything and is never followed. The
    address needs 64 bits: block * stride passes 2^31 in a cache of a few gigabytes.
    """
    n = start + tl.arange(0, BLOCK_N)
    if BY_BLOCK and S < BLOCK_N:
        # (BLOCK_N / S,) block numbers, each spread over the S rows of its block. That a row's address is a
        # multiple of 16 the compiler does not see through the reshape; untold, it loads number by number.
        number = start // S + tl.arange(0, BLOCK_N // S)
        block = tl.load(table + number, mask=number * S < high, other=0).to(tl.int64)[:, None]
        slot = tl.arange(0, S)[None, :]
        key_row = (block * key_stride_block + slot * key_stride_slot).reshape(BLOCK_N)
        value_row = (block * value_stride_block + slot * value_stride_slot).reshape(BLOCK_N)
        key_row, value_row = tl.multiple_of(key_row, 16), tl.multiple_of(value_row, 16)
    else:
        if BY_BLOCK:  # the whole tile lies in one block
            block = tl.load(table + start // S).to(tl.int64)
        else:
            block = tl.load(table + n // S, mask=n < high, other=0).to(tl.int64)  # (BLOCK_N,)
        offset = n % S
        key_row = block * key_stride_block + offset * key_stride_slot
        value_row = block * value_stride_block + offset * value_stride_slot
    k_pointers, v_pointers = key + key_row[:, None], value + value_row[:, None]
    if MASKED or BLOCK_D != D:
        mask = (tl.arange(0, BLOCK_D) < D)[None, :]
        if MASKED:
            mask = (n < high)[:, None] & mask
        k = tl.load(k_pointers, mask=mask, other=0.0)
        v = tl.load(v_pointers, mask=mask, other=0.0)
    else:
        k = tl.load(k_pointers)
        v = tl.load(v_pointers)
    if DOT_F32:
        k = k.to(tl.float32)
        v = v.to(tl.float32)
    return k, v


@triton.jit
def online_update(m, l, acc, scores, v):
    """One step of the online softmax: fold a tile of scores and values into (m, l, acc).

    `scores` (BLOCK_M, BLOCK_N) are in units of log 2, so that exp(x) is exp2, which is one instruction; a
    key that a row does not see has -inf, and exp2(-inf) is 0. Every row has to see a key of its first tile:
    with m = -inf after it, exp2(-inf - -inf) would be NaN. `v` is (BLOCK_N, BLOCK_D).
    """
    m_new = tl.maximum(m, tl.max(scores, axis=1))
    alpha = tl.exp2(m - m_new)
    p = tl.exp2(scores - m_new[:, None])  # (BLOCK_M, BLOCK_N)
    l = l * alpha + tl.sum(p, axis=1)
    acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return m_new, l, acc


@triton.jit
def attend(
    m,  # (BLOCK_M,) float32, as are the next two: the state so far
    l,  # (BLOCK_M,)
    acc,  # (BLOCK_M, BLOCK_D)
    q,  # (BLOCK_M, BLOCK_D)
    low,  # position of the first key, a multiple of BLOCK_N
    high,  # the first position that is not attended to
    position,  # (BLOCK_M,) the last position that each row sees; (1,) if it is the same for all
    scale,
    key,
    value,
    table,
    key_stride_block,
    key_stride_slot,
    value_stride_block,
    value_stride_slot,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,  # False: all rows see all keys of all tiles
    BY_BLOCK: tl.constexpr,
    DOT_F32: tl.constexpr,
):
    """Walk over the keys [low, high) in tiles of BLOCK_N and fold each tile into (m, l, acc)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    for start in range(low, high, BLOCK_N):
        k, v = load_keys_and_values(
            key,
            value,
            table,
            start,
            high,
            key_stride_block,
            key_stride_slot,
            value_stride_block,
            value_stride_slot,
            S,
            D,
            BLOCK_N,
            BLOCK_D,
            MASKED,
            BY_BLOCK,
            DOT_F32,
        )
        # (BLOCK_M, BLOCK_D) x (BLOCK_D, BLOCK_N). "ieee": float32 inputs would otherwise be rounded to the 10
        # bits of TF32; no effect on 16 bits. The scale comes after the product, as in the formula.
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (BLOCK_M, BLOCK_N)
        scores = scores * LOG2_E
        if MASKED:
            seen = (start + tl.arange(0, BLOCK_N))[None, :] <= position[:, None]
            # -inf and not 0: exp2(-inf) is 0, so a hidden key takes no share. A score of 0 would take one.
            scores = tl.where(seen, scores, float("-inf"))
        m, l, acc = online_update(m, l, acc, scores, v)
    return m, l, acc

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
    n,  # (BLOCK_N,) positions in the sequence
    in_range,  # (BLOCK_N,) which of them to load; the others become 0
    d_mask,  # (BLOCK_D,)
    key_stride_block,
    key_stride_slot,
    value_stride_block,
    value_stride_slot,
    S: tl.constexpr,
    DOT_F32: tl.constexpr,
):
    """Gather one tile of K and V, each (BLOCK_N, BLOCK_D), through the block table.

    The block table is read under the mask too: its padding may hold anything and is never followed. The
    address needs 64 bits: block * stride passes 2^31 in a cache of a few gigabytes.
    """
    block = tl.load(table + n // S, mask=in_range, other=0).to(tl.int64)  # (BLOCK_N,)
    offset = n % S
    mask = in_range[:, None] & d_mask[None, :]
    key_row = block * key_stride_block + offset * key_stride_slot
    value_row = block * value_stride_block + offset * value_stride_slot
    k = tl.load(key + key_row[:, None], mask=mask, other=0.0)
    v = tl.load(value + value_row[:, None], mask=mask, other=0.0)
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

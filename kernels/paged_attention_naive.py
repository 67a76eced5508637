"""Decode attention over a paged KV cache, lesson one: the simplest kernel that is correct.

**What is computed.** For one query q (that of the newest token) and the n tokens of its sequence::

    S_j = scale * q . K_j                      j = 0 .. n-1       the scores
    P_j = exp(S_j) / sum_j exp(S_j)                               their softmax
    O   = sum_j P_j * V_j                                         the output, D numbers

**Where the keys are.** The tokens of a sequence lie in blocks of S slots, anywhere in the cache. The block
table turns the position j into an address, as a page table does in an operating system::

    block table of the sequence   [7, 2]           S = 4, n = 6

    position j       0   1   2   3 | 4   5   -   -
    logical block    0             | 1                    j // S
    block            7             | 2                    block_table[j // S]
    address          7*S + j % S   | 2*S + j % S          the slot

**The online softmax.** One pass over the keys, one block at a time, without ever holding all scores. Keep the
largest score so far m, the sum of exponentials l and the weighted sum of values acc, both relative to m::

    m   = max S_j          l = sum exp(S_j - m)          acc = sum exp(S_j - m) * V_j

When a block brings a larger maximum m', everything so far was measured against the wrong maximum. Both sums
are off by the same factor alpha = exp(m - m'), so one multiplication repairs them::

    l   <- l   * alpha + sum_block exp(S_j - m')
    acc <- acc * alpha + sum_block exp(S_j - m') * V_j
    m   <- m'

At the end O = acc / l. Since no exponent is positive, no exponential overflows, however large the scores are.

Example with values 1, 2, 3 and scores 0, 2, 1, blocks of one key::

    after key 0:  m=0  l=1.000             acc=1.000
    after key 1:  m=2  l=1*e^-2 + 1=1.135  acc=1*e^-2 + 2=2.135        alpha = e^-2 = 0.135
    after key 2:  m=2  l=1.135 + e^-1=1.503  acc=2.135 + 3*e^-1=3.239  alpha = 1
    O = 3.239 / 1.503 = 2.155, the softmax average of 1, 2, 3.

**What is naive.** One program per query head, as in the paper's kernel: with grouped-query attention G heads
read the same keys, each of them again; and products are summed on the ordinary cores, so the arithmetic, not
the memory, is the limit (about half of the bandwidth at best). `paged_attention.py` is lesson two.

Paper: section 4.1 and equation 4. vLLM v0.1: `csrc/attention/attention_kernels.cu`.
Online softmax: Milakov and Gimelshein, arXiv 1805.02867.
"""
# ruff: noqa: E741  (l is the derivation's letter)

import torch

from .common import check_attention, tl, triton


def paged_attention_reference(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same in plain torch: gather each sequence's keys and values, then a softmax. -> (R, Hq, D)."""
    block_size, group = key_cache.shape[1], query.shape[1] // key_cache.shape[2]
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)  # (R, Hq, D)
    for r, n in enumerate(seq_lens.tolist()):
        j = torch.arange(n, device=query.device)  # positions
        blocks = block_tables[r, j // block_size].long()
        k = key_cache[blocks, j % block_size].float().repeat_interleave(group, dim=1)  # (n, Hq, D)
        v = value_cache[blocks, j % block_size].float().repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,nhd->hn", query[r].float(), k) * scale
        out[r] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v).to(query.dtype)
    return out


@triton.jit
def _naive_kernel(
    out_ptr,  # (R, Hq, D)
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
    LANES_S: tl.constexpr,  # next power of two of S
    LANES_D: tl.constexpr,  # next power of two of D
):
    seq = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    kv_head = head // G
    n = tl.load(seq_lens_ptr + seq)

    d = tl.arange(0, LANES_D)
    offset = tl.arange(0, LANES_S)
    query = query_ptr + seq * query_stride_seq + head * query_stride_head
    q = tl.load(query + d, mask=d < D, other=0.0).to(tl.float32)  # (D,)

    m = float("-inf")
    l = 0.0
    acc = tl.zeros([LANES_D], dtype=tl.float32)

    for logical_block in range(0, (n + S - 1) // S):
        # 64 bits before the multiplication: block * stride passes 2^31 in a cache of a few gigabytes.
        block = tl.load(block_tables_ptr + seq * table_stride + logical_block).to(tl.int64)
        filled = (offset < S) & (logical_block * S + offset < n)  # the last block is partly empty
        mask = filled[:, None] & (d < D)[None, :]

        key = key_cache_ptr + block * key_stride_block + kv_head * key_stride_head
        k = tl.load(key + offset[:, None] * key_stride_slot + d[None, :], mask=mask, other=0.0)  # (S, D)
        scores = scale * tl.sum(q[None, :] * k.to(tl.float32), axis=1)  # (S,)
        scores = tl.where(filled, scores, float("-inf"))

        m_new = tl.maximum(m, tl.max(scores, axis=0))
        alpha = tl.exp(m - m_new)
        p = tl.exp(scores - m_new)  # (S,), 0 where not filled

        value = value_cache_ptr + block * value_stride_block + kv_head * value_stride_head
        v = tl.load(value + offset[:, None] * value_stride_slot + d[None, :], mask=mask, other=0.0)  # (S, D)
        l = l * alpha + tl.sum(p, axis=0)
        acc = acc * alpha + tl.sum(p[:, None] * v.to(tl.float32), axis=0)
        m = m_new

    # An empty sequence (padding of the batch) has l = 0 and acc = 0: its output is 0, not 0 / 0.
    o = acc / tl.where(l > 0, l, 1.0)
    tl.store(out_ptr + seq * out_stride_seq + head * out_stride_head + d, o, mask=d < D)


def paged_attention_naive(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of one query token per sequence, one program per query head.

    Args:
        query: (R, Hq, D), the newest token of each sequence; its own KV is already in the cache.
        key_cache: (B, S, Hkv, D).
        value_cache: (B, S, Hkv, D).
        block_tables: (R, max_blocks); entries beyond a sequence's length are never looked at.
        seq_lens: (R,); a sequence of length 0 gives zeros.
        scale: usually D ** -0.5.

    Returns:
        (R, Hq, D), contiguous, in the dtype of `query`.
    """
    check_attention(query, key_cache, value_cache, block_tables, seq_lens)
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    num_seqs, num_heads = seq_lens.shape[0], query.shape[1]
    if query.shape[0] != num_seqs:
        raise ValueError(f"query must have one token per sequence: {num_seqs} rows, got {query.shape[0]}.")
    out = query.new_empty(num_seqs, num_heads, head_dim)
    if num_seqs == 0:
        return out

    _naive_kernel[(num_seqs, num_heads)](
        out,
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
        G=num_heads // num_kv_heads,
        D=head_dim,
        LANES_S=triton.next_power_of_2(block_size),
        LANES_D=triton.next_power_of_2(head_dim),
        num_warps=4,
    )
    return out

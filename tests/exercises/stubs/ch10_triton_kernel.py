"""Chapter 10: a Triton paged-attention kernel.

First what makes a kernel of one pass possible: two halves of a softmax can be put together afterwards. Then the
kernel itself, and last the cut that lets many programs share one long sequence.

The letters are those of the notebook: S_j is a score, m the largest score so far, l the sum of exponentials and acc
the weighted sum of values, both relative to m.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex10a
or, in the notebook, with   %check ex10a.
"""
# ruff: noqa: E741  (l is the derivation's letter)

from collections.abc import Callable

import torch
from torch import Tensor

from minivllm.kernels.common import tl, triton

Part = tuple[Tensor, Tensor, Tensor]  # m (...), l (...), acc (..., D)


def merge(a: Part, b: Part) -> Part:
    """ex10a. The part of two sets of keys together, from the part of each.

    A part is what an online softmax knows about some of the keys that a query sees:

        m    (...)     the largest of their scores S_j
        l    (...)     sum of exp(S_j - m)
        acc  (..., D)  sum of exp(S_j - m) * V_j

    so acc / l is the attention over these keys alone. The leading dimensions are the same for all three, for
    example one row for each head. Both parts were measured against their own m; put them on one scale first, and
    leave the tensors of both as they are.

    In some rows a part may be without keys: there m is -inf and l is 0, and acc was not written. Such an acc may
    hold anything, even NaN or infinity, and 0 times either is NaN. Rows in which both parts are without keys stay
    so: m -inf, l 0. Scores may be of any size, so no exponent may be positive: e^1000 is infinite.

    Example, scores 0, 2, 1 and values 1, 2, 3 (D = 1). The part of key 0 is m = 0, l = 1, acc = [1]. That of keys 1
    and 2 is m = 2, l = 1 + e^-1 = 1.368, acc = [2 + 3 * e^-1] = [3.104]. Together: m = 2, l = 1.503, acc = [3.239].

    Returns:
        (m, l, acc) of all keys, in the shape and dtype of those of `a` and `b`.
    """
    raise NotImplementedError("ex10a")


@triton.jit
def decode_kernel(
    out_ptr,  # (R, Hq, D), to be written
    query_ptr,  # (R, Hq, D)
    key_cache_ptr,  # (B, S, Hkv, D)
    value_cache_ptr,  # (B, S, Hkv, D), with the same strides
    block_tables_ptr,  # (R, max_blocks)
    seq_lens_ptr,  # (R,)
    scale,
    max_blocks,  # entries in a row of block_tables
    stride_block,  # numbers from one block to the next; S * stride_slot if the cache is contiguous, but it need not be
    stride_slot,  # from one slot to the next
    stride_head,  # from one KV head to the next
    S: tl.constexpr,  # block size, not always a power of two
    G: tl.constexpr,  # query heads for each KV head: query head h reads KV head h // G
    D: tl.constexpr,  # head size, a power of two
    BLOCK_N: tl.constexpr,  # positions in a tile, a power of two; nothing to do with S
):
    """ex10b. Decode attention: one program computes one query head of one sequence. The grid is (R, Hq).

    out[r, h] = sum_j softmax(scale * q . K_j) V_j over the positions j = 0 .. seq_len - 1 of sequence r.

    A plan. Number 3 is the loop; the rest is done once.
      1. Which program is this? tl.program_id(0) is the sequence, tl.program_id(1) the head, tl.num_programs(1) is Hq.
      2. Load seq_len, and q as a vector of D numbers. Rows of query and out are contiguous.
      3. For each tile of BLOCK_N positions n: which of them exist (n < seq_len)? Load their block numbers from the
         table, entry n // S of row r. Load their keys as a matrix (BLOCK_N, D); the row of position n begins at
         block * stride_block + (n % S) * stride_slot + kv_head * stride_head. Scores: tl.sum over D, times scale.
         Then one step of the online softmax, with the values, which lie where the keys lie.
      4. Store acc / l. A sequence of length 0 (padding of a batch) gets zeros, not 0 / 0.

    Load everything under a mask and with `other`, the table too: a slot that holds no token of this sequence holds
    NaN or infinity here, table entries behind its last block lead into such slots, and behind the end of a tensor
    lies foreign memory. Masking what is loaded is not enough: a key that was loaded as 0 has the score 0, and
    exp(0 - m) is not 0. Scores may be anything from -20,000 to 20,000: all of them may be near the one, or the other.

    Write to no tensor but out. Without a GPU the kernel runs in Triton's interpreter, where you may `print` any
    tile. A kernel's addresses are not checked: one that is far outside of a tensor ends the whole process.
    """
    raise NotImplementedError("ex10b")


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    scale: float,
    block_n: int = 16,
    out: Tensor | None = None,
) -> Tensor:
    """Launch `decode_kernel`, one program for each sequence and query head. Given: nothing is to be written here.

    Args:
        query: (R, Hq, D) float32, contiguous: the newest token of each sequence.
        key_cache, value_cache: (B, S, Hkv, D) float32, equal strides, the last axis contiguous.
        block_tables: (R, max_blocks) int32, contiguous.
        seq_lens: (R,) int32.
        scale: usually D ** -0.5.
        block_n: tile size.
        out: where the result goes; None: a new tensor.
    """
    out = torch.empty_like(query) if out is None else out
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    num_seqs, num_heads = query.shape[:2]
    decode_kernel[(num_seqs, num_heads)](
        out,
        query,
        key_cache,
        value_cache,
        block_tables,
        seq_lens,
        scale,
        block_tables.shape[1],
        *key_cache.stride()[:3],
        S=block_size,
        G=num_heads // num_kv_heads,
        D=head_dim,
        BLOCK_N=block_n,
    )
    return out


def split_kv(seq_len: int, num_splits: int, tile: int, attend_part: Callable[[int, int], Part]) -> Tensor:
    """ex10c. Decode attention of one sequence whose tokens are divided among several programs, in two passes.

    Pass 1 divides. Cut the positions 0 .. seq_len - 1 into at most `num_splits` ranges [low, high), and call
    attend_part(low, high) once for each. On a GPU all these run at the same time, and the slowest decides; so with
    T = ceil(seq_len / tile) tiles no range may have more than ceil(T / num_splits) of them. Tiles stay whole: every
    range begins at a multiple of `tile`.

    Pass 2 merges all parts at once. With M the largest of the m_i, row by row:

        w_i = exp(m_i - M)          out = sum_i w_i * acc_i / sum_i w_i * l_i

    A range may be empty (low >= high), when there are more splits than tiles. Its part has m = -inf, l = 0 and an
    acc that was not written, which may hold NaN or infinity, as in ex10a. Scores may be of any size, and they differ
    from head to head.

    Example: split_kv(2900, num_splits=4, tile=64, ...): 46 tiles, at most 12 for each range, such as
    [0, 768), [768, 1536), [1536, 2304), [2304, 2900).

    Args:
        seq_len: 1 or more.
        num_splits: 1 or more.
        tile: tokens in a tile.
        attend_part: attend_part(low, high) is the part (m, l, acc) of the keys low .. high - 1: m and l are (Hq,),
            acc is (Hq, D).

    Returns:
        (Hq, D), the attention over all seq_len keys, in the dtype of the parts.
    """
    raise NotImplementedError("ex10c")

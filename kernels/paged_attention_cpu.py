"""Decode attention over a paged KV cache on a CPU: the loops of the lesson, compiled by Numba.

PyTorch's attention wants the keys of a sequence side by side, so on a CPU the blocks have to be copied
together first, which costs as much time as the attention itself. A kernel of our own follows the block table
and reads the blocks where they lie. For a GPU it is written in Triton (`paged_attention.py`); here are the
same steps in plain Python, one program per (sequence, KV head), block size 4, block table [7, 2]::

    block 7  k0 k1 k2 k3  ->  scores s0 .. s3   maximum, exp, sum  ->  acc  = e0 v0 + e1 v1 + e2 v2 + e3 v3
    block 2  k4 k5  .  .  ->  scores s4 s5      the old is rescaled, then  acc += e4 v4 + e5 v5
                  never read                    in the end    output = acc / total

The rescaling is the online softmax of `online_softmax.py`: when a block brings a larger maximum, what was
summed up before is multiplied by exp(old maximum - new maximum). Slots beyond a sequence's end are not
masked: they are not read.

The loops are written for vector instructions: `exp` is a polynomial (`rows_cpu.py`), queries are multiplied
by `scale` once, and values are added four keys at a time, because each addition to `acc` reads and writes all
of it. But most of the time goes into memory. The blocks of a sequence lie in random places, where a core
cannot read ahead by itself. So beside each row of a block, a row of the next block is asked for
(`prefetch_cpu.py`), in the order of memory; and a program has all KV heads of its sequence, since one head's
rows are 256 bytes here and 256 bytes there. 30 layers of SmolLM2-135M, ms on two cores of an AMD EPYC
(Zen 5)::

    sequences x tokens             32 x 190    8 x 700    32 x 700    64 x 256
    reading K and V once           6.7         6.1        23.3        17.6         43 GB/s
    this kernel                    11.3        9.5        34.0        25.1         30 GB/s
    a head per program, no asking  15.3        14.1       52.6        37.0         20 GB/s

With `NUMBA_DISABLE_JIT=1` in the environment Python itself runs these loops, and you can step through them
with a debugger.

Paper: section 4.1 and figure 5. vLLM V1: `csrc/cpu/cpu_attn.cpp` and `v1/attention/backends/cpu_attn.py`.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from .bfloat16_cpu import widen
from .compile_cpu import FAST_MATH, inline, parallel
from .prefetch_cpu import prefetch
from .rows_cpu import exp

# query, key_cache, value_cache, tokens, block_tables, seq_lens, scale, output; `::1` means C-contiguous.
SIGNATURE = (
    "void(float32[:,:,:], {kv}[:,:,:,::1], {kv}[:,:,:,::1], int64[::1], int32[:,::1], int32[::1], "
    "float32, float32[:,:,::1])"
)


ENOUGH = 2 * numba.config.NUMBA_NUM_THREADS
"""Sequences from which on all threads have work when each sequence is one program."""


@inline
def scores(queries, keys, rows, next_keys, ahead, weights):
    """weights (group, S) = queries (group, D) times keys[rows], one head's; asks for next_keys[ahead]."""
    for slot in range(len(rows)):
        prefetch(next_keys, ahead[slot])
        key = keys[rows[slot]]
        for g in range(len(queries)):
            score = np.float32(0)
            for d in range(queries.shape[1]):
                score += queries[g, d] * widen(key[d])
            weights[g, slot] = score


@inline
def softmax(weights, filled, maximum, total, acc):
    """One step of the online softmax, in place; acc (group, D)."""
    for g in range(len(maximum)):
        new_maximum = maximum[g]
        for slot in range(filled):
            new_maximum = max(new_maximum, weights[g, slot])
        rescale = exp(maximum[g] - new_maximum)  # first block: acc and total are 0
        maximum[g] = new_maximum
        in_block = np.float32(0)
        for slot in range(filled):
            weights[g, slot] = exp(weights[g, slot] - new_maximum)
            in_block += weights[g, slot]
        total[g] = total[g] * rescale + in_block
        for d in range(acc.shape[1]):
            acc[g, d] *= rescale


@inline
def add_values(weights, values, rows, next_values, ahead, acc):
    """acc (group, D) += weights times values[rows], one head's; asks for next_values[ahead]."""
    filled = len(rows)
    fours = filled - filled % 4
    for slot in range(0, fours, 4):
        for i in range(4):
            prefetch(next_values, ahead[slot + i])
        v0, v1, v2, v3 = (
            values[rows[slot]],
            values[rows[slot + 1]],
            values[rows[slot + 2]],
            values[rows[slot + 3]],
        )
        for g in range(len(acc)):
            w0, w1, w2, w3 = (
                weights[g, slot],
                weights[g, slot + 1],
                weights[g, slot + 2],
                weights[g, slot + 3],
            )
            for d in range(acc.shape[1]):
                first = w0 * widen(v0[d]) + w1 * widen(v1[d])
                acc[g, d] += first + w2 * widen(v2[d]) + w3 * widen(v3[d])
    for slot in range(fours, filled):
        value = values[rows[slot]]
        for g in range(len(acc)):
            for d in range(acc.shape[1]):
                acc[g, d] += weights[g, slot] * widen(value[d])


@cache
def compile_paged_attention_cpu(head_dim: int, kv: str = "float32") -> Callable[..., None]:
    """The kernel for one head_dim and one type of K and V, "float32" or "uint16": the bits of a bfloat16.

    head_dim is a constant, because a loop of known length becomes vector instructions. The kernel is compiled
    here and not in the middle of a step: about five seconds, once per machine, because Numba keeps the result
    in a cache on disk. Each sequence has one query::

        kernel(query, key_cache, value_cache, tokens, block_tables, seq_lens, scale, output)

        query, output (T, Hq, D), of which only the rows `tokens` (R,) are read and written; query may be a
        slice. key_cache and value_cache (B, S, Hkv, D), block_tables (R, max_blocks), seq_lens (R,), each at
        least 1. Oracle: `paged_attention_reference`.
    """

    signature = SIGNATURE.format(kv=kv)

    @parallel(signature, fastmath=FAST_MATH)
    def paged_attention_cpu(query, key_cache, value_cache, tokens, block_tables, seq_lens, scale, output):
        num_blocks, block_size, num_kv_heads, _ = key_cache.shape
        group = query.shape[1] // num_kv_heads  # query heads h * group ... share KV head h
        keys = key_cache.reshape(num_blocks, block_size * num_kv_heads, head_dim)
        values = value_cache.reshape(num_blocks, block_size * num_kv_heads, head_dim)
        # One program has all heads of a sequence: it reads whole blocks. With few sequences it has one head.
        parts = 1 if len(tokens) >= ENOUGH else num_kv_heads
        num_heads = num_kv_heads // parts
        for program in numba.prange(len(tokens) * parts):
            row, first = program // parts, program % parts * num_heads
            seq_len = seq_lens[row]
            num_queries = num_heads * group
            scaled = np.empty((num_queries, head_dim), np.float32)  # the queries, side by side
            for q in range(num_queries):
                for d in range(head_dim):
                    scaled[q, d] = query[tokens[row], first * group + q, d] * scale
            maximum = np.full(num_queries, -np.inf, np.float32)
            total = np.zeros(num_queries, np.float32)
            acc = np.zeros((num_queries, head_dim), np.float32)
            weights = np.empty((group, block_size), np.float32)
            places = np.empty(block_size * num_heads, np.int64)
            for slot in range(block_size):
                for head in range(num_heads):
                    places[slot * num_heads + head] = slot * num_kv_heads + first + head
            for start in range(0, seq_len, block_size):
                block = block_tables[row, start // block_size]
                after = block_tables[row, min(start + block_size, seq_len - 1) // block_size]
                filled = min(block_size, seq_len - start)
                for head in range(num_heads):  # all its queries while K and V are in the core's cache
                    q = slice(head * group, head * group + group)
                    rows = places[head::num_heads][:filled]
                    ahead = places[head * block_size : (head + 1) * block_size]
                    scores(scaled[q], keys[block], rows, keys[after], ahead, weights)
                    softmax(weights, filled, maximum[q], total[q], acc[q])
                    add_values(weights, values[block], rows, values[after], ahead, acc[q])
            for q in range(num_queries):
                for d in range(head_dim):
                    output[tokens[row], first * group + q, d] = acc[q, d] / total[q]

    return paged_attention_cpu


def deal_out(seq_lens: np.ndarray, num_threads: int) -> np.ndarray:
    """An order of the sequences in which all threads have about the same amount to read.

    `prange` hands each thread one run of consecutive programs. So the sequences are dealt out like cards, the
    longest first. Returns indices. Example: lengths [9, 1, 8, 2] and 2 threads give [0, 3, 2, 1]: one thread
    reads 9 + 2 tokens, the other 8 + 1.
    """
    longest_first = np.argsort(-seq_lens, kind="stable")
    return np.concatenate([longest_first[thread::num_threads] for thread in range(num_threads)])

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

The time goes into arithmetic as well as into memory, so the loops are written for vector instructions: `exp`
is a polynomial (`rows_cpu.py`), queries are multiplied by `scale` once, and values are added four keys at a
time, because each addition to `acc` reads and writes all of it. With `NUMBA_DISABLE_JIT=1` in the environment
Python itself runs these loops, and you can step through them with a debugger.

Paper: section 4.1 and figure 5. vLLM V1: `csrc/cpu/cpu_attn.cpp` and `v1/attention/backends/cpu_attn.py`.
"""

from collections.abc import Callable
from functools import cache

import numba
import numpy as np

from .rows_cpu import FAST_MATH, exp

# query, key_cache, value_cache, tokens, block_tables, seq_lens, scale, output; `::1` means C-contiguous.
SIGNATURE = (
    "void(float32[:,:,:], float32[:,:,:,::1], float32[:,:,:,::1], int64[::1], int32[:,::1], int32[::1], "
    "float32, float32[:,:,::1])"
)


@cache
def compile_paged_attention_cpu(head_dim: int) -> Callable[..., None]:
    """The kernel for one head_dim: a constant, because a loop of known length becomes vector instructions.

    It is compiled here and not in the middle of a step: about five seconds, once per machine, because Numba
    keeps the result in a cache on disk. Each sequence has one query::

        kernel(query, key_cache, value_cache, tokens, block_tables, seq_lens, scale, output)

        query, output (T, Hq, D), of which only the rows `tokens` (R,) are read and written; query may be a
        slice. key_cache and value_cache (B, S, Hkv, D), block_tables (R, max_blocks), seq_lens (R,), each at
        least 1. Oracle: `paged_attention_reference`.
    """

    @numba.njit(SIGNATURE, parallel=True, nogil=True, cache=True, error_model="numpy", fastmath=FAST_MATH)
    def paged_attention_cpu(query, key_cache, value_cache, tokens, block_tables, seq_lens, scale, output):
        block_size, num_kv_heads = key_cache.shape[1], key_cache.shape[2]
        group = query.shape[1] // num_kv_heads  # query heads h * group ... share KV head h
        for program in numba.prange(len(tokens) * num_kv_heads):
            row, kv_head = program // num_kv_heads, program % num_kv_heads
            scaled = np.empty((group, head_dim), np.float32)  # the queries, side by side
            for g in range(group):
                for d in range(head_dim):
                    scaled[g, d] = query[tokens[row], kv_head * group + g, d] * scale
            maximum = np.full(group, -np.inf, np.float32)
            total = np.zeros(group, np.float32)
            acc = np.zeros((group, head_dim), np.float32)
            weights = np.empty(block_size, np.float32)
            for start in range(0, seq_lens[row], block_size):
                block = block_tables[row, start // block_size]
                filled = min(block_size, seq_lens[row] - start)
                fours = filled - filled % 4
                for g in range(group):  # all of them while the block is in the core's cache
                    new_maximum = maximum[g]
                    for slot in range(filled):
                        score = np.float32(0)
                        for d in range(head_dim):
                            score += scaled[g, d] * key_cache[block, slot, kv_head, d]
                        weights[slot] = score
                        new_maximum = max(new_maximum, score)
                    rescale = exp(maximum[g] - new_maximum)  # first block: acc and total are 0
                    maximum[g] = new_maximum
                    in_block = np.float32(0)
                    for slot in range(filled):
                        weights[slot] = exp(weights[slot] - new_maximum)
                        in_block += weights[slot]
                    total[g] = total[g] * rescale + in_block
                    for d in range(head_dim):
                        acc[g, d] *= rescale
                    for slot in range(0, fours, 4):
                        w0, w1, w2, w3 = (
                            weights[slot],
                            weights[slot + 1],
                            weights[slot + 2],
                            weights[slot + 3],
                        )
                        for d in range(head_dim):
                            acc[g, d] += (
                                w0 * value_cache[block, slot, kv_head, d]
                                + w1 * value_cache[block, slot + 1, kv_head, d]
                                + w2 * value_cache[block, slot + 2, kv_head, d]
                                + w3 * value_cache[block, slot + 3, kv_head, d]
                            )
                    for slot in range(fours, filled):
                        for d in range(head_dim):
                            acc[g, d] += weights[slot] * value_cache[block, slot, kv_head, d]
            for g in range(group):
                for d in range(head_dim):
                    output[tokens[row], kv_head * group + g, d] = acc[g, d] / total[g]

    return paged_attention_cpu


def use_threads(num_threads: int) -> int:
    """Run the kernel on `num_threads` threads from now on, or on as many as Numba has; returns how many."""
    num_threads = min(num_threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(num_threads)
    return num_threads


def deal_out(seq_lens: np.ndarray, num_threads: int) -> np.ndarray:
    """An order of the sequences in which all threads have about the same amount to read.

    `prange` hands each thread one run of consecutive programs. So the sequences are dealt out like cards, the
    longest first. Returns indices. Example: lengths [9, 1, 8, 2] and 2 threads give [0, 3, 2, 1]: one thread
    reads 9 + 2 tokens, the other 8 + 1.
    """
    longest_first = np.argsort(-seq_lens, kind="stable")
    return np.concatenate([longest_first[thread::num_threads] for thread in range(num_threads)])

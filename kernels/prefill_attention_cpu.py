"""Prefill attention over a paged KV cache on a CPU: two matrix products with a softmax between them.

In a prefill many queries share their keys, so the time is in arithmetic, and the register tile of
`matmul_cpu.py` does it. That tile multiplies rows with a panel whose numbers lie in the order of the loop, so
K and V are copied out of their blocks, K into panels of `WIDTH` keys, V row by row. It is one copy for all
queries: with 512 queries it is one part in a hundred of the work.

The query heads which share a KV head are stacked, `group` rows for each token. A program takes the rows of a
tile, 4 or 8, and one KV head. It is small enough to keep all of its scores, so there is no online softmax::

    rows 4 x D  times  K panels         ->  scores, 4 x visible keys     | o o o o . |  row of token 3
                                            exp(score - largest); sum    | o o o o o |  row of token 4
    exp 4 x visible  times  V           ->  4 x D, divided by the sum            '.' is 0: not yet visible

Keys which no row of a program may see are not computed, which is half of all: PyTorch's attention (SDPA)
computes them and masks them out. A program's cost grows with its place in the prompt. Threads get runs of
consecutive programs, so places are dealt out from both ends: 0, last, 1, last but one, ...

One layer of SmolLM2-135M (9 query and 3 KV heads of 64), ms on two cores of an AMD EPYC (Zen 5), beside
gathering K and V and SDPA (`attention_torch.py`)::

    tokens of the prompt        64     166    256    512    1,024   2,048
    gather, SDPA                0.14   0.55   1.10   3.1    10.5    37
    prefill_attention_cpu       0.07   0.22   0.44   1.3    4.8     19

Oracle: `prefill_attention_reference`. vLLM V1: `csrc/cpu/cpu_attn.cpp`.
"""

import numba
import numpy as np

from .bfloat16_cpu import widen
from .compile_cpu import FAST_MATH, inline, parallel
from .matmul_cpu import LANES, ROWS, WIDTH, make_tile
from .rows_cpu import exp

VALUE_VECTORS = 2 if LANES == 16 else 3
"""Vectors of a tile of the second product: with AVX-512, two tiles make up a head of 64."""
VALUE_WIDTH = VALUE_VECTORS * LANES

_score_tile, _value_tile = make_tile(ROWS), make_tile(ROWS, VALUE_VECTORS)


Scratch = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_scratch(
    num_queries: int, num_keys: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> Scratch:
    """Room for the copies of a prefill of this size, or of a smaller one: rows, K in panels, V.

    Made once and used in all layers: fresh memory costs a good part of a microsecond for each 4 KiB.
    """
    num_rows, num_panels = num_queries * (num_heads // num_kv_heads), -(-num_keys // WIDTH)
    return (
        np.empty((num_kv_heads, num_rows, head_dim), np.float32),
        np.empty((num_kv_heads, num_panels, head_dim, WIDTH), np.float32),
        np.empty((num_kv_heads, num_keys, max(head_dim, VALUE_WIDTH)), np.float32),
    )


@inline
def softmax(scores, limit):
    """scores (n,) -> exp(scores - largest) of the first `limit`, 0 for the others, in place; -> the sum."""
    largest = np.float32(-np.inf)
    for j in range(limit):
        largest = max(largest, scores[j])
    total = np.float32(0)
    for j in range(limit):
        scores[j] = exp(scores[j] - largest)
        total += scores[j]
    for j in range(limit, len(scores)):
        scores[j] = np.float32(0)
    return total


# query, key_cache, value_cache, blocks, num_keys, scale, scratch, output
SIGNATURE = (
    "void(float32[:,:,:], {kv}[:,:,:,::1], {kv}[:,:,:,::1], int64[::1], int64, float32, "
    "Tuple((float32[:,:,::1], float32[:,:,:,::1], float32[:,:,::1])), float32[:,:,::1])"
)


@parallel([SIGNATURE.format(kv="float32"), SIGNATURE.format(kv="uint16")], fastmath=FAST_MATH)
def prefill_attention_cpu(query, key_cache, value_cache, blocks, num_keys, scale, scratch, output):
    """Attention of queries which are the last tokens of one sequence.

    query, output (q, Hq, D), query may be a slice; key_cache and value_cache (B, S, Hkv, D), float32 or the
    bits of bfloat16; blocks (b,) of the sequence; num_keys, at least q: what the last query sees; scratch:
    from `make_scratch`.
    """
    block_size, num_kv_heads, head_dim = key_cache.shape[1:]
    num_queries, group = len(query), query.shape[1] // num_kv_heads
    num_rows, before = num_queries * group, num_keys - num_queries  # `before` tokens are all visible
    rows, keys, values = scratch
    for i in numba.prange(num_queries):
        for head in range(num_kv_heads * group):
            for d in range(head_dim):
                rows[head // group, i * group + head % group, d] = query[i, head, d] * scale
    for b in numba.prange(len(blocks)):
        for slot in range(min(block_size, num_keys - b * block_size)):
            j = b * block_size + slot
            for head in range(num_kv_heads):
                for d in range(head_dim):
                    keys[head, j // WIDTH, d, j % WIDTH] = widen(key_cache[blocks[b], slot, head, d])
                    values[head, j, d] = widen(value_cache[blocks[b], slot, head, d])
    num_tiles = (num_rows + ROWS - 1) // ROWS
    for program in numba.prange(num_kv_heads * num_tiles):  # one head after the other: it stays in the cache
        head, place = program // num_tiles, program % num_tiles
        first = ROWS * (place // 2 if place % 2 == 0 else num_tiles - 1 - place // 2)
        tile = rows[head, first : min(first + ROWS, num_rows)]
        visible = before + (first + len(tile) - 1) // group + 1
        num_panels = (visible + WIDTH - 1) // WIDTH
        scores = np.empty((len(tile), num_panels * WIDTH), np.float32)
        for panel in range(num_panels):
            _score_tile(tile, keys[head, panel], scores, 0, panel * WIDTH, 0)
        totals = np.empty(len(tile), np.float32)
        for r in range(len(tile)):
            totals[r] = softmax(scores[r, :visible], before + (first + r) // group + 1)
        sums = np.empty((len(tile), values.shape[2]), np.float32)
        for start in range(0, values.shape[2], VALUE_WIDTH):
            column = min(start, values.shape[2] - VALUE_WIDTH)
            _value_tile(scores[:, :visible], values[head, :visible, column:], sums, 0, column, 0)
        for r in range(len(tile)):
            for d in range(head_dim):
                output[(first + r) // group, head * group + (first + r) % group, d] = sums[r, d] / totals[r]

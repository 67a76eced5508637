"""Figure 18a on this CPU: what looking up blocks costs the attention kernel.

The same compiled kernel reads the same keys and values twice: from blocks of 16 in random order, and from one
block per sequence, which is contiguous memory and needs a single look-up::

    paged        [ 93 | 12 | 40 | 7 ]   a look-up and a jump every 16 tokens
    contiguous   [ 3 .............. ]   one look-up

Chapter 10 shows a third way: `gather_call` copies the blocks of each sequence into one piece first.

Paper: section 7.1 (20 to 26% for its kernel, which also has to cope with blocks in every inner loop). The GPU
kernels are measured by `bench kernels`. vLLM V1: `benchmarks/kernels/benchmark_paged_attention.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from minivllm.bench.report import Spread, in_turns

NUM_SEQS, SEQ_LEN, HEADS, KV_HEADS, HEAD_DIM = 16, 512, 9, 3, 64  # a layer of SmolLM2-135M
NAME = f"decode attention, {NUM_SEQS} sequences of {SEQ_LEN} tokens"


def decode_step(block_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> query (R, Hq, D), caches (2, B, S, Hkv, D) of K and V, tables (R, B / R) of blocks in random order.

    The tokens are the same whatever the blocks: token t of sequence r lies where its table says.
    """
    per_seq = SEQ_LEN // block_size
    tables = (
        np.random.default_rng(seed)
        .permutation(NUM_SEQS * per_seq)
        .astype(np.int32)
        .reshape(NUM_SEQS, per_seq)
    )
    tokens = np.random.default_rng(1).standard_normal((2, NUM_SEQS, SEQ_LEN, KV_HEADS, HEAD_DIM), np.float32)
    caches = np.empty((2, NUM_SEQS * per_seq, block_size, KV_HEADS, HEAD_DIM), np.float32)
    caches[:, tables.reshape(-1)] = tokens.reshape(caches.shape)
    return np.random.default_rng(2).standard_normal((NUM_SEQS, HEADS, HEAD_DIM), np.float32), caches, tables


def kernel_call(block_size: int, seed: int = 0) -> Callable[[], np.ndarray]:
    """The kernel on blocks of `block_size` in random order; -> a call that returns (R, Hq, D)."""
    from minivllm.kernels.compile_cpu import use_threads
    from minivllm.kernels.paged_attention_cpu import compile_paged_attention_cpu

    use_threads(torch.get_num_threads())
    kernel = compile_paged_attention_cpu(HEAD_DIM)
    query, caches, tables = decode_step(block_size, seed)
    output, order = np.empty_like(query), np.arange(NUM_SEQS)
    lengths, scale = np.full(NUM_SEQS, SEQ_LEN, np.int32), np.float32(HEAD_DIM**-0.5)

    def call() -> np.ndarray:
        kernel(query, *caches, order, tables, lengths, scale, output)
        return output

    return call


def gather_call(block_size: int, seed: int = 0) -> Callable[[], np.ndarray]:
    """The same by copies: each sequence's K and V gathered into one piece, then PyTorch's attention."""
    query, caches, tables = map(torch.from_numpy, decode_step(block_size, seed))
    grouped = query.view(NUM_SEQS, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)

    def call() -> np.ndarray:
        key, value = (cache[tables].flatten(1, 2).transpose(1, 2) for cache in caches)  # (R, Hkv, n, D)
        return scaled_dot_product_attention(grouped, key, value).flatten(1, 2).numpy()

    return call


def measure_kernels(rounds: int = 9, repeats: int = 5) -> dict[str, Any]:
    """Milliseconds of both, in turns: each round the shortest of a few calls."""
    calls = {"paged": kernel_call(16), "contiguous": kernel_call(SEQ_LEN)}

    def shortest(call: Callable[[], np.ndarray]) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)

    turns = {name: partial(shortest, call) for name, call in calls.items()}
    return {name: Spread(tuple(times)).as_json() for name, times in in_turns(turns, rounds).items()}

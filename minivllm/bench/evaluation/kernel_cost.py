"""Figure 18a on this CPU: what looking up blocks costs the attention kernel.

The same compiled kernel reads the same keys and values twice: from blocks of 16 in random order, and from one
block per sequence, which is contiguous memory and needs a single look-up::

    paged        [ 93 | 12 | 40 | 7 ]   a look-up and a jump every 16 tokens
    contiguous   [ 3 .............. ]   one look-up

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

from minivllm.bench.report import Spread, in_turns

NUM_SEQS, SEQ_LEN, HEADS, KV_HEADS, HEAD_DIM = 16, 512, 9, 3, 64  # a layer of SmolLM2-135M
NAME = f"decode attention, {NUM_SEQS} sequences of {SEQ_LEN} tokens"


def kernel_call(block_size: int, rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """The kernel on blocks of `block_size` in random order; -> a call that returns (R, Hq, D)."""
    from minivllm.kernels.paged_attention_cpu import compile_paged_attention_cpu, use_threads

    use_threads(torch.get_num_threads())
    kernel = compile_paged_attention_cpu(HEAD_DIM)
    per_seq = SEQ_LEN // block_size
    tables = rng.permutation(NUM_SEQS * per_seq).astype(np.int32).reshape(NUM_SEQS, per_seq)
    shape = (NUM_SEQS * per_seq, block_size, KV_HEADS, HEAD_DIM)
    # The tokens are the same whatever the blocks: token t of sequence r lies where its table says.
    tokens = np.random.default_rng(1).standard_normal((2, NUM_SEQS, SEQ_LEN, KV_HEADS, HEAD_DIM), np.float32)
    caches = np.empty((2, *shape), np.float32)
    caches[:, tables.reshape(-1)] = tokens.reshape(2, *shape)
    query = np.random.default_rng(2).standard_normal((NUM_SEQS, HEADS, HEAD_DIM), np.float32)
    output, order = np.empty_like(query), np.arange(NUM_SEQS)
    lengths, scale = np.full(NUM_SEQS, SEQ_LEN, np.int32), np.float32(HEAD_DIM**-0.5)

    def call() -> np.ndarray:
        kernel(query, *caches, order, tables, lengths, scale, output)
        return output

    return call


def measure_kernels(rounds: int = 9, repeats: int = 5) -> dict[str, Any]:
    """Milliseconds of both, in turns: each round the shortest of a few calls."""
    rng = np.random.default_rng(0)
    calls = {"paged": kernel_call(16, rng), "contiguous": kernel_call(SEQ_LEN, rng)}

    def shortest(call: Callable[[], np.ndarray]) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)

    turns = {name: partial(shortest, call) for name, call in calls.items()}
    return {name: Spread(tuple(times)).as_json() for name, times in in_turns(turns, rounds).items()}

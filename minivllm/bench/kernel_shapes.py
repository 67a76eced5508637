"""What `bench kernels` measures: the shapes, and the work they cannot avoid. Pure arithmetic.

Decode attention is bound by memory, so its quality is one number: the share of the memory's speed it reaches.
The bytes it *has* to move are, for R sequences of n tokens::

    K and V    R * n * 2 * Hkv * D * bytes        Llama-3.1-8B, R = 64, n = 4096, float16: 1,073,741,824
    q and out  2 * R * Hq * D * bytes                                                            1,048,576

Nothing else counts, although more is moved: block tables and, with split-KV, partial results. The memory's
speed is not the data sheet's but that of a copy from device to device, measured in the same run (its bytes
are counted twice, read and written). Prefill is bound by arithmetic, so there operations are counted.

Paper: section 7.1 (kernel microbenchmark, figure 18a). Comparable figures: FlashInfer, blog of 2024-02-02.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model: Hq query heads, Hkv KV heads, D elements each."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int


LLAMA_8B = Heads("llama-3.1-8b", 32, 8, 128)
SMOLLM2 = Heads("smollm2-135m", 9, 3, 64)


@dataclass(frozen=True)
class AttentionShape:
    """A batch of `num_seqs` sequences (R): `query_len` queries each, after `context` computed tokens.

    One query is decode, several are prefill.
    """

    heads: Heads
    num_seqs: int
    query_len: int
    context: int

    @property
    def kind(self) -> str:
        """ "decode" or "prefill"."""
        return "decode" if self.query_len == 1 else "prefill"

    @property
    def seq_len(self) -> int:
        """Tokens of each sequence, queries included."""
        return self.context + self.query_len

    @property
    def name(self) -> str:
        """For example "llama-3.1-8b B64 n4096" or "llama-3.1-8b B4 q512 context 4096"."""
        lengths = f"n{self.seq_len}" if self.kind == "decode" else f"q{self.query_len} context {self.context}"
        return f"{self.heads.name} B{self.num_seqs} {lengths}"

    def work(self, element_size: int) -> int:
        """Bytes for decode, multiplications and additions of the visible scores for prefill.

        Example for prefill, 4,096 queries and no context: 4,096 x 4,097 / 2 = 8,390,656 visible scores per
        head, times 4 x 32 x 128 are 137.5 GFLOP (2 for q * k and 2 for p * v, each D times).
        """
        h = self.heads
        if self.kind == "decode":
            elements = self.seq_len * h.num_kv_heads + h.num_heads  # of K and V; of the query and the output
            return 2 * self.num_seqs * elements * h.head_dim * element_size
        visible = self.query_len * self.context + self.query_len * (self.query_len + 1) // 2
        return 4 * self.num_seqs * h.num_heads * h.head_dim * visible


def decode(heads: Heads, num_seqs: int, seq_len: int) -> AttentionShape:
    """A decode batch by the tokens of its sequences."""
    return AttentionShape(heads, num_seqs, 1, seq_len - 1)


# From full batches, where only the memory counts, to one sequence, where only split-KV can fill the chip.
# Times of SmolLM2 are mostly overhead: its KV is small.
DECODE_SHAPES = (
    *(decode(LLAMA_8B, 64, length) for length in (1024, 4096, 8192)),
    decode(LLAMA_8B, 16, 4096),
    *(decode(LLAMA_8B, 1, length) for length in (1024, 16384)),
    decode(SMOLLM2, 32, 1024),
    decode(SMOLLM2, 1, 256),
)
# One long prompt, several, chunks with much context before them, and a small model.
PREFILL_SHAPES = (
    AttentionShape(LLAMA_8B, 1, 4096, 0),
    AttentionShape(LLAMA_8B, 4, 1024, 0),
    AttentionShape(LLAMA_8B, 4, 512, 4096),
    AttentionShape(SMOLLM2, 8, 256, 0),
)
# The marks of this project on an H100, in percent of the measured copy.
MARKS = {"llama-3.1-8b B64 n4096": 85.0, "llama-3.1-8b B16 n4096": 75.0, "llama-3.1-8b B1 n16384": 60.0}


@dataclass(frozen=True)
class Measurement:
    """One contender on one shape; the fields are those of the JSON file.

    Attributes:
        kind: "decode", "prefill" or "rows".
        shape, contender: names.
        microseconds: of every replay.
        work: FLOPs for prefill, else bytes.
        num_splits: of split-KV, where that is chosen.
    """

    kind: str
    shape: str
    contender: str
    microseconds: list[float]
    work: int
    num_splits: int | None = None

    @property
    def median(self) -> float:
        """The middle time, in microseconds."""
        return float(np.median(self.microseconds))

    def percent_of(self, bytes_per_second: float) -> float:
        """Share of the measured copy rate, by the median."""
        return 100.0 * self.work / (self.median * 1e-6) / bytes_per_second

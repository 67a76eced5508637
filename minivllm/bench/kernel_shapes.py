"""What `bench kernels` measures: the shapes, the bytes they move, how a result is printed. Pure arithmetic.

Decode attention is bound by memory, so its quality is one number: the share of the memory's speed it reaches.
The bytes it *has* to move are, for R sequences of n tokens::

    K and V    R * n * 2 * Hkv * D * bytes        Llama-3.1-8B, R = 64, n = 4096, float16: 1,073,741,824
    q and out  2 * R * Hq * D * bytes                                                            1,048,576

Nothing else counts, although more is moved: block tables and, with split-KV, partial results. A kernel that
moves more than it has to gets no credit for it. The memory's speed is not the data sheet's but a copy from
device to device, measured in the same run (its bytes are counted twice, read and written).

Paper: section 7.1 (kernel microbenchmark, figure 18a). Comparable figures: FlashInfer, blog of 2024-02-02.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minivllm.bench.report import Spread


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model."""

    name: str
    num_heads: int  # Hq
    num_kv_heads: int  # Hkv
    head_dim: int  # D


LLAMA_8B = Heads("llama-3.1-8b", 32, 8, 128)
SMOLLM2 = Heads("smollm2-135m", 9, 3, 64)


@dataclass(frozen=True)
class DecodeShape:
    """One decode batch: `num_seqs` sequences (R) of `seq_len` tokens, one query each."""

    heads: Heads
    num_seqs: int
    seq_len: int

    @property
    def name(self) -> str:
        """For example "llama-3.1-8b B64 n4096"."""
        return f"{self.heads.name} B{self.num_seqs} n{self.seq_len}"

    def bytes_needed(self, element_size: int) -> int:
        """K, V, queries and outputs, each once.

        Example, 64 sequences of 4,096 tokens, 32 query and 8 KV heads of 128, 2 bytes each: 1,073,741,824 for
        K and V, 1,048,576 for queries and outputs.
        """
        h = self.heads
        kv = self.num_seqs * self.seq_len * 2 * h.num_kv_heads * h.head_dim
        query_and_out = 2 * self.num_seqs * h.num_heads * h.head_dim
        return (kv + query_and_out) * element_size

    def partial_bytes(self, num_splits: int) -> int:
        """What split-KV writes and reads again: acc, m and l of each part, float32.

        Example, one sequence, 32 heads, 32 splits, D = 128: 2 x 32 x 32 x 130 x 4 = 1,064,960, which beside
        the 67 MB of K and V of 16,384 tokens is 1.6%.
        """
        # One split writes the output itself; there is nothing to merge.
        if num_splits == 1:
            return 0
        return 2 * self.num_seqs * self.heads.num_heads * num_splits * (self.heads.head_dim + 2) * 4


@dataclass(frozen=True)
class PrefillShape:
    """One prefill batch: `num_seqs` sequences with `query_len` queries after `context` computed tokens."""

    heads: Heads
    num_seqs: int
    query_len: int
    context: int

    @property
    def name(self) -> str:
        """For example "llama-3.1-8b B4 q512 context 4096"."""
        return f"{self.heads.name} B{self.num_seqs} q{self.query_len} context {self.context}"

    def flops(self) -> int:
        """Multiplications and additions of the visible scores: 2 for q * k and 2 for p * v, each D times.

        Hidden scores do not count, though a kernel computes some of them (a tile on the diagonal is half
        hidden). Example, 4,096 queries and no context: 4,096 x 4,097 / 2 = 8,390,656 visible scores for each
        head, times 4 x 32 x 128 are 137.5 GFLOP.
        """
        visible = self.query_len * self.context + self.query_len * (self.query_len + 1) // 2
        return 4 * self.num_seqs * self.heads.num_heads * self.heads.head_dim * visible


# From full batches, where only the memory counts, to one sequence, where only split-KV can fill the chip.
# Times of SmolLM2 are mostly overhead: its KV is small.
DECODE_SHAPES = (
    DecodeShape(LLAMA_8B, 64, 1024),
    DecodeShape(LLAMA_8B, 64, 4096),
    DecodeShape(LLAMA_8B, 64, 8192),
    DecodeShape(LLAMA_8B, 16, 4096),
    DecodeShape(LLAMA_8B, 1, 1024),
    DecodeShape(LLAMA_8B, 1, 16384),
    DecodeShape(SMOLLM2, 32, 1024),
    DecodeShape(SMOLLM2, 1, 256),
)
# One long prompt, several, chunks with much context before them, and a small model.
PREFILL_SHAPES = (
    PrefillShape(LLAMA_8B, 1, 4096, 0),
    PrefillShape(LLAMA_8B, 4, 1024, 0),
    PrefillShape(LLAMA_8B, 4, 512, 4096),
    PrefillShape(SMOLLM2, 8, 256, 0),
)
# The marks of this project on an H100, in percent of the measured copy.
MARKS = {"llama-3.1-8b B64 n4096": 85.0, "llama-3.1-8b B16 n4096": 75.0, "llama-3.1-8b B1 n16384": 60.0}


@dataclass(frozen=True)
class Measurement:
    """One contender on one shape. `work` is bytes for decode and the row kernels, FLOPs for prefill."""

    kind: str  # "decode", "prefill" or "rows"
    shape: str
    contender: str
    microseconds: Spread
    work: int
    num_splits: int | None = None

    def percent_of(self, bytes_per_second: float) -> float:
        """Share of the measured copy rate, by the median."""
        return 100.0 * self.work / (self.microseconds.median * 1e-6) / bytes_per_second

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Measurement:
        """What `as_json` made a record of. Rates are computed anew from the times."""
        work = record["flops"] if record["kind"] == "prefill" else record["bytes"]
        times = Spread(tuple(record["microseconds"]["values"]))
        names = (record["kind"], record["shape"], record["contender"])
        return cls(*names, times, work, record.get("num_splits"))

    def as_json(self, bytes_per_second: float) -> dict[str, Any]:
        """Everything, with the derived rate beside the raw times."""
        # Raw times first: rates can be computed again, should their definition change.
        record: dict[str, Any] = {
            "kind": self.kind,
            "shape": self.shape,
            "contender": self.contender,
            "microseconds": self.microseconds.as_json(),
        }
        if self.num_splits is not None:
            record["num_splits"] = self.num_splits
        if self.kind == "prefill":
            return record | {"flops": self.work, "tflops": self.work / self.microseconds.median / 1e6}
        percent = round(self.percent_of(bytes_per_second), 2)
        return record | {"bytes": self.work, "percent_of_copy": percent, "mark": MARKS.get(self.shape)}


def format_table(measurements: list[Measurement], bytes_per_second: float) -> str:
    """The table that is printed: one line a measurement, shapes apart.

    ::

        llama-3.1-8b B64 n4096
          minivllm                     412.3 us   86.9% of copy   (mark 85%)
          torch sdpa, contiguous       401.0 us   89.3% of copy

    Args:
        measurements: those of one shape next to each other.
        bytes_per_second: of the copy.
    """
    lines, shape = [], None
    for m in measurements:
        if m.shape != shape:
            shape = m.shape
            lines.append(f"{m.kind}: {shape}")
        line = f"  {m.contender:<34}{m.microseconds.median:>10.1f} us"
        if m.kind == "prefill":
            line += f"{m.work / m.microseconds.median / 1e6:>9.1f} TFLOP/s"
        else:
            line += f"{m.percent_of(bytes_per_second):>8.1f}% of copy"
        if m.contender == "minivllm" and shape in MARKS:
            line += f"   (mark {MARKS[shape]:.0f}%)"
        lines.append(line)
    return "\n".join(lines)

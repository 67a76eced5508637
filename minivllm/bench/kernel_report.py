"""What `bench kernels` measures, the work it cannot avoid, and the results for people: tables, marks, figure.

Decode attention is bound by memory, so its quality is one number: the share of the memory's speed (of a copy
in the same run) that it reaches. The bytes it *has* to move are, for R sequences of n tokens::

    K and V    R * n * 2 * Hkv * D * bytes        Llama-3.1-8B, R = 64, n = 4096, float16: 1,073,741,824
    q and out  2 * R * Hq * D * bytes                                                            1,048,576

Nothing else counts, although more is moved: block tables, partial results of split-KV. Prefill is bound by
arithmetic, so there operations are counted. All is computed from the JSON file::

    mark                               asked   reached
    llama-3.1-8b B64 n4096, of a copy    90%     91.2%      percent of a device-to-device copy
    llama-3.1-8b B1 n16384, split-KV      4x     4.80x      times as fast as without splits

Paper: section 7.1, figure 18a. Comparable figures: FlashInfer, blog of 2024-02-02.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minivllm.bench.report import Result, Spread, describe, table

OURS, NO_SPLIT, ONE_BLOCK = "minivllm", "minivllm, no split", "minivllm, one block per sequence"
DEEPER = "minivllm, 5 stages"
SDPA, FLASH = "torch sdpa, contiguous", "torch flash attention, contiguous"
# One long sequence: what split-KV is for.
SPLIT_SHAPE, SPLIT_MARK = "llama-3.1-8b B1 n16384", 4.0
NOT_MEASURED, FAILED = "not measured", "failed"


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
    """R = `num_seqs` sequences, `query_len` queries each (one is decode), after `context` computed tokens."""

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
        """Bytes for decode, else operations: 4 * Hq * D for each visible score. Example: 4,096 queries
        without context see 4,096 x 4,097 / 2 keys, so 32 heads of 128 take 137.5 GFLOP.
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
DECODE_SHAPES = (
    *(decode(LLAMA_8B, 64, length) for length in (1024, 4096, 8192)),
    decode(LLAMA_8B, 16, 4096),
    *(decode(LLAMA_8B, 1, length) for length in (1024, 16384)),
    decode(SMOLLM2, 32, 1024),
    decode(SMOLLM2, 1, 256),
)
PREFILL_SHAPES = (
    AttentionShape(LLAMA_8B, 1, 2048, 0),
    AttentionShape(LLAMA_8B, 1, 8192, 0),
    AttentionShape(LLAMA_8B, 4, 1024, 0),
    AttentionShape(LLAMA_8B, 4, 512, 4096),
    AttentionShape(SMOLLM2, 8, 256, 0),
)
# The marks of this project on an H100: in percent of the measured copy, and in percent of the speed of flash
# attention on contiguous K and V.
MARKS = {"llama-3.1-8b B64 n4096": 90.0, "llama-3.1-8b B16 n4096": 80.0, SPLIT_SHAPE: 60.0}
FLASH_MARKS = {
    "llama-3.1-8b B64 n4096": 95.0,
    "llama-3.1-8b B1 q2048 context 0": 60.0,
    "llama-3.1-8b B1 q8192 context 0": 60.0,
}
MARKED_SHAPES = {*MARKS, *FLASH_MARKS}


@dataclass(frozen=True)
class Measurement:
    """One contender on one shape ("decode", "prefill" or "rows"); `work` is FLOPs for prefill, else bytes."""

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


@dataclass(frozen=True)
class Failure:
    """One of our contenders on one shape that raised, or gave a wrong answer, and what was said of it."""

    shape: str
    contender: str
    error: str


def measurements_of(result: Result) -> list[Measurement]:
    """The measurements in a result file."""
    return [Measurement(**record) for record in result["results"]]


def failures_of(result: Result) -> list[Failure]:
    """The failures in a result file."""
    return [Failure(**record) for record in result.get("failures", [])]


def print_report(result: Result) -> None:
    """What was measured where, the table, what of ours failed, then the marks and what paging cost."""
    where, rate, measurements = result["provenance"], result["copy_bytes_per_second"], measurements_of(result)
    print(f"{describe(where)}\ndriver {where['driver']}, triton {where['versions'].get('triton')}")
    print(f"copy {rate / 1e9:.0f} GB/s (read and written), median of {result['method']['repeats']}")
    floor = Spread(tuple(result["floor_microseconds"]))
    print(f"a kernel with nothing to do takes {floor.median:.1f} us; no time below is without it\n")
    # One shape after the other, although they were measured in several passes.
    shapes = list(dict.fromkeys(m.shape for m in measurements))
    print(measurement_table(sorted(measurements, key=lambda m: shapes.index(m.shape)), rate))
    if failures := failures_of(result):
        print(f"\n{len(failures)} of ours failed")
        print(*(f"  {each.shape}: {each.contender}: {each.error}" for each in failures), sep="\n")
    print(f"\n{table([('mark', 'asked', 'reached'), *mark_rows(result)])}")
    if costs := paging_costs(measurements):
        print("\nwhat paging costs, time of the paged kernel over contiguous K and V")
        for shape, ratios in costs.items():
            texts = [f"{ratio - 1:+.0%} against {name}" for name, ratio in ratios.items()]
            print(f"  {shape:<40}{', '.join(texts)}")


def measurement_table(measurements: list[Measurement], bytes_per_second: float) -> str:
    """One line per measurement, with the share of a copy of `bytes_per_second`, or the rate of a prefill."""
    rows: list[tuple[str, ...]] = [("shape", "contender", "us", "of a copy", "TFLOP/s", "mark")]
    for m in measurements:
        mark = f"{MARKS[m.shape]:.0f}%" if m.contender == OURS and m.shape in MARKS else ""
        is_prefill = m.kind == "prefill"
        share = "" if is_prefill else f"{m.percent_of(bytes_per_second):.1f}%"
        flops = f"{m.work / m.median / 1e6:.1f}" if is_prefill else ""
        rows.append((m.shape, m.contender, f"{m.median:.1f}", share, flops, mark))
    return table(rows)


def find(measurements: list[Measurement], shape: str, contender: str = OURS) -> Measurement | None:
    """The measurement of one contender on one shape; None if there is none."""
    return next((m for m in measurements if (m.shape, m.contender) == (shape, contender)), None)


def mark_rows(result: Result | None) -> list[tuple[str, str, str]]:
    """Each mark, what is asked, and what was reached, or "failed" where our kernel did, or "not measured"."""
    measurements = measurements_of(result) if result else []
    failed = {f.shape for f in failures_of(result or {}) if f.contender == OURS}

    def reached(shape: str, number: float | None, spec: str, unit: str) -> str:
        if number is None:
            return FAILED if shape in failed else NOT_MEASURED
        return f"{number:{spec}}{unit}"

    rows: list[tuple[str, str, str]] = []
    for shape, mark in MARKS.items():
        ours = find(measurements, shape)
        share = ours.percent_of(result["copy_bytes_per_second"]) if ours else None
        rows.append((f"{shape}, of a copy", f"{mark:.0f}%", reached(shape, share, ".1f", "%")))
    for shape, mark in FLASH_MARKS.items():
        speed = speed_over(measurements, shape, FLASH)
        share = None if speed is None else 100 * speed
        rows.append((f"{shape}, of flash attention", f"{mark:.0f}%", reached(shape, share, ".1f", "%")))
    speed = speed_over(measurements, SPLIT_SHAPE, NO_SPLIT)
    return [
        *rows,
        (f"{SPLIT_SHAPE}, split-KV", f"{SPLIT_MARK:.0f}x", reached(SPLIT_SHAPE, speed, ".2f", "x")),
    ]


def speed_over(measurements: list[Measurement], shape: str, other: str) -> float | None:
    """How many times as fast as contender `other` ours is; None where one of them is missing."""
    ours, theirs = find(measurements, shape), find(measurements, shape, other)
    return theirs.median / ours.median if ours and theirs else None


def missed_decode_shapes(result: Result) -> list[str]:
    """The shapes that reach a smaller share of the copy than their mark, the worst first."""
    rate, gaps = result["copy_bytes_per_second"], {}
    for shape, mark in MARKS.items():
        if (ours := find(measurements_of(result), shape)) and ours.percent_of(rate) < mark:
            gaps[shape] = ours.percent_of(rate) / mark
    return sorted(gaps, key=gaps.__getitem__)


def paging_costs(measurements: list[Measurement]) -> dict[str, dict[str, float]]:
    """By shape: our time over that on contiguous K and V, as in {"the same kernel": 1.02, "torch": 1.08}."""
    peers = {ONE_BLOCK: "the same kernel", SDPA: "torch"}
    costs: dict[str, dict[str, float]] = {}
    for m in measurements:
        if m.contender in peers and (ours := find(measurements, m.shape)):
            costs.setdefault(m.shape, {})[peers[m.contender]] = ours.median / m.median
    return costs


def plot(result: Result, path: str) -> None:
    """Decode: percent of the copy for each contender, a panel per shape; a line where the mark is."""
    from minivllm.viz.style import INK, PALETTE, mix_with_white, new_figure

    rate, panels = result["copy_bytes_per_second"], {}
    for m in measurements_of(result):
        if m.kind == "decode":
            panels.setdefault(m.shape, []).append(m)
    most, rows = max(map(len, panels.values()), default=0), (len(panels) + 1) // 2
    figure = new_figure(10, 0.8 + rows * (0.55 + 0.24 * most))
    ticks = range(0, 101, 25)
    for number, (shape, measurements) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, 2, number)
        for row, m in enumerate(measurements):
            percent = m.percent_of(rate)
            colour = PALETTE[0] if m.contender == OURS else mix_with_white(PALETTE[row % len(PALETTE)], 0.6)
            axes.barh(row, percent, height=0.7, color=colour, edgecolor=INK, lw=0.5)
            text = f" {percent:.0f}%  {m.median:,.0f} us"
            axes.text(percent, row, text, va="center", fontsize=7, color=INK)
        if shape in MARKS:
            axes.axvline(MARKS[shape], color=INK, lw=1, ls="--")
        axes.set(xlim=(0, 130), ylim=(most - 0.4, -0.6))
        axes.set_yticks(range(len(measurements)), [m.contender for m in measurements], fontsize=7)
        axes.set_xticks(ticks, [f"{tick}%" for tick in ticks], fontsize=7)
        axes.set_title(shape, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    where = result["provenance"]
    machine = f"{where['gpu']}, {where['date'][:10]}"
    title = f"Decode attention, share of a copy's {rate / 1e9:,.0f} GB/s ({machine}); dashed: the mark"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)

"""What every benchmark reports besides its numbers: how much they scatter, and whether a ratio may be quoted.

Two things that are compared run in turns (A B C A B C ..., so that a machine that slows down slows all of
them), and each keeps every value. A ratio is formed per round and quoted with the range of the rounds and the
processor. It is not quoted at all when something else kept the machine busy at the start, or when the rounds
of one side differ too much to mean anything (numbers made up)::

    minivllm   142.3 output tokens/s [139.0, 144.1], spread 4%
    hf          42.0 output tokens/s [ 41.2,  42.4], spread 3%
    minivllm generates 3.39x the output tokens/s of hf (rounds 3.32x to 3.43x, on an AMD EPYC)

    no ratio to hf: load 1.41 at the start, the limit is 0.7                    the same on a busy machine

vLLM V1: `vllm/benchmarks/lib/utils.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from minivllm.bench.machine import provenance

MAX_LOAD = 0.7  # average number of processes that wanted a core in the minute before the benchmark
MAX_SPREAD = 0.15  # (largest - smallest) / median over the rounds of one backend
NOT_RECORDED = "not recorded"
Result = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing, in the order they were made.

    Example: `Spread((139.0, 144.1, 142.3))` prints as "142.3 [139.0, 144.1]" with ".1f". The median and not
    the mean: one run that something else disturbed does not move it.

    Raises:
        ValueError: there is no measurement.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a Spread needs at least one measurement.")

    @classmethod
    def from_json(cls, entry: Result) -> Spread:
        """Back from `as_json`: the values are enough to get the rest again."""
        return cls(tuple(entry["values"]))

    @property
    def median(self) -> float:
        """The middle measurement."""
        return float(np.median(self.values))

    @property
    def relative(self) -> float:
        """(largest - smallest) / median. Example: 139.0, 142.3, 144.1 give 5.1 / 142.3 = 3.6%."""
        return (max(self.values) - min(self.values)) / self.median

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{min(self.values):{spec}}, {max(self.values):{spec}}]"

    def as_json(self) -> Result:
        """Median, extremes, relative spread, and the measurements themselves."""
        low, high = min(self.values), max(self.values)
        return {
            "median": self.median, "min": low, "max": high, "spread": self.relative, "values": [*self.values]
        }  # fmt: skip


def in_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each function once per round, in the order given; -> all results by name."""
    results: dict[str, list[T]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            results[name].append(run())
    return results


# -- ratios -----------------------------------------------------------------------------------------


def load_of(where: Result) -> float | None:
    """Load average over the minute before the benchmark; None where it was not recorded."""
    return where["load_average"][0] if where.get("load_average") else None


def why_no_ratio(where: Result, spreads: Mapping[str, Spread]) -> str | None:
    """What forbids quoting a ratio of these measurements; None if nothing does.

    Args:
        where: the provenance of both.
        spreads: the two sides of the ratio by name.
    """
    if (load := load_of(where)) is not None and load > MAX_LOAD:
        return f"load {load:.2f} at the start, the limit is {MAX_LOAD}"
    for name, spread in spreads.items():
        if spread.relative > MAX_SPREAD:
            return f"the rounds of {name} spread by {spread.relative:.0%}, the limit is {MAX_SPREAD:.0%}"
    return None


def paired_ratio(ours: Spread, theirs: Spread) -> Spread:
    """The ratio of each round: what slows down both sides of a round leaves it alone.

    Raises:
        ValueError: the two sides have different numbers of rounds.
    """
    return Spread(tuple(a / b for a, b in zip(ours.values, theirs.values, strict=True)))


def ratio_text(ours: Spread, theirs: Spread, name: str, peer: str, where: Result) -> str:
    """How two rates compare, or why that is not said; see the top of this file for both forms."""
    if reason := why_no_ratio(where, {name: ours, peer: theirs}):
        return f"no ratio to {peer}: {reason}"
    ratio = paired_ratio(ours, theirs)
    return (
        f"{name} generates {ratio.median:.2f}x the output tokens/s of {peer} (rounds "
        f"{min(ratio.values):.2f}x to {max(ratio.values):.2f}x, on {where['gpu'] or where['cpu']})"
    )


# -- printing and writing ---------------------------------------------------------------------------


def describe(where: Result) -> str:
    """Two lines of `provenance()`: the processor and how busy it was, then versions, date and commit."""
    versions, load = where["versions"], load_of(where)
    load_text = NOT_RECORDED if load is None else f"{load:.2f}"
    return (
        f"{where['gpu'] or where['cpu']}, {where['cores']} cores, {where['threads']} threads, "
        f"load average at the start: {load_text}\n"
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}, Python "
        f"{where['python']}, {where['date']}, commit {(where['commit'] or 'unknown')[:12]}"
    )


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right.

    Example: `table([["", "ms"], ["decode", 12]])` is "        ms" above "decode  12".
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in texts
    )


def new_result(benchmark: str, **more: Any) -> Result:
    """The beginning of a result, made before anything is measured: the load is that of the start."""
    return {"benchmark": benchmark, "provenance": provenance(), **more}


def write_json(path: str | Path, result: Result) -> None:
    """Write a result; folders on the way are made, a file of that name is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def finish(
    args: argparse.Namespace,
    result: Result,
    print_report: Callable[[Result], None],
    draw: Callable[[Result, str], None] | None = None,
) -> int:
    """Print a result, and write and draw it where `--output-json` and `--plot` ask for that; -> 0."""
    print_report(result)
    if args.output_json:
        write_json(args.output_json, result)
    if draw is not None and args.plot:
        draw(result, args.plot)
    return 0

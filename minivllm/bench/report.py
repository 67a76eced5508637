"""What every benchmark reports besides its numbers: the machine, the scatter, and whether a ratio holds.

Two things that are compared run in turns (A B C A B C ..., so that a machine that slows down slows all of
them), and each keeps every value. A ratio is formed per round and quoted with the range of the rounds and the
processor. It is not quoted when something else kept the machine busy at the start (the load average counts
the processes that want a core), or when the rounds of one side differ too much (numbers made up)::

    minivllm   142.3 output tokens/s [139.0, 144.1], spread 4%
    hf          42.0 output tokens/s [ 41.2,  42.4], spread 3%
    minivllm generates 3.39x the output tokens/s of hf (rounds 3.32x to 3.43x, on an AMD EPYC)
    no ratio to hf: load 1.41 at the start, the limit is 0.7                    the same on a busy machine

The machine is described from where Linux keeps it; other systems give None, and the reports say so. vLLM V1:
`vllm/benchmarks/lib/utils.py`; `vllm collect-env`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

MAX_LOAD = 0.7  # average number of processes that wanted a core in the minute before the benchmark
COMMIT_VARIABLE = "MINIVLLM_COMMIT"  # which code this is, where a copy of it has come without its git
MAX_SPREAD = 0.15  # (largest - smallest) / median over the rounds of one backend
MIB = 1 << 20
PACKAGES = ("minivllm", "torch", "triton", "transformers", "numpy")
# Kind of core by vendor, family and model of /proc/cpuinfo: rented machines often say no more than "AMD
# EPYC", and on another kind of core every ratio is another.
CORES = {
    ("AuthenticAMD", "23", "49"): "Zen 2", ("AuthenticAMD", "25", "1"): "Zen 3",
    ("AuthenticAMD", "25", "17"): "Zen 4", ("AuthenticAMD", "26", "2"): "Zen 5",
    ("GenuineIntel", "6", "85"): "Skylake or Cascade Lake", ("GenuineIntel", "6", "106"): "Ice Lake",
    ("GenuineIntel", "6", "143"): "Sapphire Rapids", ("GenuineIntel", "6", "207"): "Emerald Rapids",
}  # fmt: skip
Result = dict[str, Any]
T = TypeVar("T")


def proc_value(path: str, key: str) -> str | None:
    """The value of the first line `key: value` of a file in /proc; None where there is no such line."""
    with suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def processor_name(path: str = "/proc/cpuinfo") -> str | None:
    """ "AMD EPYC (Zen 3)": what the system says, and the kind of core if it is in `CORES`. None: nothing."""
    name, *kind = (proc_value(path, key) for key in ("model name", "vendor_id", "cpu family", "model"))
    return f"{name} ({CORES[tuple(kind)]})" if tuple(kind) in CORES else name


def memory_bytes(key: str) -> int | None:
    """Memory of this process: "VmRSS" is resident now, "VmHWM" was the most since `reset_peak_rss`. Not from
    `getrusage`, which inherits the peak of the program that started this one.
    """
    value = proc_value("/proc/self/status", key)  # for example "1234 kB"
    return None if value is None else int(value.split()[0]) * 1024


def reset_peak_rss() -> None:
    """Let the peak start again from what is resident now. Where that cannot be done, it stays."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: see proc(5)


def available_cores() -> list[int]:
    """Numbers of the cores this process may use; in a container they are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def git_commit() -> str | None:
    """The commit of this checkout, with "+changes" if files differ from it. Outside of git it is what
    `MINIVLLM_COMMIT` says, else None.
    """
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        # Numbers from changed files belong to no commit, and the report should say so.
        command.append("--dirty=+changes")
        return subprocess.check_output(command, text=True, timeout=10, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.SubprocessError):
        return os.environ.get(COMMIT_VARIABLE)


def driver_version() -> str | None:
    """The NVIDIA driver's version; None if nvidia-smi does not say. A time belongs to it as to the chip."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.partition("\n")[0].strip() or None


def provenance() -> Result:
    """Machine, load, versions, commit and date, ready for JSON; None where the system does not tell."""
    import torch  # nothing else in this module needs it

    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        # A folder of this machine is of no use to others: the last part of its name is kept.
        "command_line": [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]],
        "cpu": processor_name() or platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "driver": driver_version() if torch.cuda.is_available() else None,
        "cores": len(available_cores()),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing, in the order they were made, at least one.

    `Spread((139.0, 144.1, 142.3))` prints as "142.3 [139.0, 144.1]" with ".1f": the median and not the mean,
    because one run that something else disturbed does not move it.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a Spread needs at least one measurement.")

    @classmethod
    def from_json(cls, entry: Result) -> Spread:
        """Back from `as_json`."""
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
        extremes = {"min": min(self.values), "max": max(self.values)}
        return {"median": self.median, **extremes, "spread": self.relative, "values": list(self.values)}


def in_turns(runs: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each function once per round, in the order given; -> all results by name."""
    results: dict[str, list[T]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            results[name].append(run())
    return results


def load_of(where: Result) -> float | None:
    """Load average over the minute before the benchmark; None where it was not recorded."""
    return where["load_average"][0] if where.get("load_average") else None


def wait_for_calm(limit: float = MAX_LOAD, seconds: float = 240.0) -> None:
    """Sleep until the load average is at most `limit`, or `seconds` have passed."""
    end = time.monotonic() + seconds
    while hasattr(os, "getloadavg") and os.getloadavg()[0] > limit and time.monotonic() < end:
        time.sleep(1.0)


def max_load(where: Result) -> float:
    """The load that does not disturb: beside a GPU one core works, so others may do as they like."""
    return where["cores"] / 2 if where.get("gpu") else MAX_LOAD


def why_no_ratio(where: Result, spreads: Mapping[str, Spread]) -> str | None:
    """What forbids quoting a ratio of these measurements, made at `where`; None if nothing does."""
    if (load := load_of(where)) is not None and load > max_load(where):
        return f"load {load:.2f} at the start, the limit is {max_load(where)}"
    for name, spread in spreads.items():
        if len(spread.values) == 1:
            return "a single round has no spread"
        if spread.relative > MAX_SPREAD:
            return f"the rounds of {name} spread by {spread.relative:.0%}, the limit is {MAX_SPREAD:.0%}"
    return None


def paired_ratio(ours: Spread, theirs: Spread) -> Spread:
    """The ratio of each round, which both sides had: what slows down both leaves it alone."""
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


def describe(where: Result) -> str:
    """Two lines of `provenance()`: the processor and how busy it was, then versions, date and commit."""
    versions, load = where["versions"], load_of(where)
    return (
        f"{where['gpu'] or where['cpu']}, {where['cores']} cores, {where['threads']} threads, "
        f"load average at the start: {'not recorded' if load is None else f'{load:.2f}'}\n"
        f"torch {versions.get('torch')}, transformers {versions.get('transformers')}, Python "
        f"{where['python']}, {where['date']}, commit {(where['commit'] or 'unknown')[:12]}"
    )


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows as text: `table([["", "ms"], ["decode", 12]])` is "        ms" above "decode  12"."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in texts
    )


def new_result(benchmark: str, **more: Any) -> Result:
    """The beginning of a result, made before anything is measured: the load is that of the start."""
    return {"benchmark": benchmark, "provenance": provenance(), **more}


def write_json(path: str | Path, result: Result) -> None:
    """Write a result; folders on the way are made, a file of that name is replaced.

    The file of that name is whole at any time, the old one or the new: a process which is killed while it
    writes leaves half of its text in another file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def finish(
    args: argparse.Namespace,
    result: Result,
    print_report: Callable[[Result], None],
    draw: Callable[[Result, str], None] | None = None,
) -> int:
    """Write a result where `--output-json` asks for that, print it, draw it where `--plot` asks; -> 0.

    In this order: what took an hour to measure is not to be lost with an error of a table.
    """
    if args.output_json:
        write_json(args.output_json, result)
    print_report(result)
    if draw is not None and args.plot:
        draw(result, args.plot)
    return 0

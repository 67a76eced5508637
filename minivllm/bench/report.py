"""What every benchmark reports besides its numbers: where they come from, and how much they scatter.

A rate means something only beside its spread and its circumstances. So whoever compares two here repeats
both, in turns (A B C A B C ..., so that a machine that slows down slows all of them), and gives the median
with the smallest and the largest value (numbers made up)::

    minivllm       142.3 output tokens/s   [139.0, 144.1]
    hf              42.0 output tokens/s   [ 41.2,  42.4]   minivllm is 3.39x as fast

and `--output-json` writes every single value together with `provenance()`.

vLLM V1: `vllm/benchmarks/lib/utils.py` and `vllm collect-env`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing. Never empty.

    Example: `Spread((139.0, 144.1, 142.3))` has the median 142.3 and prints as "142.3 [139.0, 144.1]" with
    ".1f". The median and not the mean: one run disturbed by somebody else's work does not move it.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            # Found here, and not when a report asks for the median of nothing.
            raise ValueError("a Spread needs at least one measurement.")

    @property
    def median(self) -> float:
        """The middle measurement."""
        return statistics.median(self.values)

    def __format__(self, spec: str) -> str:
        """`f"{spread:.1f}"` gives "142.3 [139.0, 144.1]": median, smallest, largest."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:{spec}} [{low:{spec}}, {high:{spec}}]"

    def as_json(self) -> dict[str, Any]:
        """Median, extremes and the measurements themselves, in the order they were made."""
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def ratio_text(ours: Spread, theirs: Spread, name: str, peer: str) -> str:
    """How two rates compare, in words that cannot be read the wrong way round.

    Example: "minivllm generates 3.39x the output tokens/s of hf".
    """
    return f"{name} generates {ours.median / theirs.median:.2f}x the output tokens/s of {peer}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of `values` lie, interpolated as numpy does by default.

    Example: the 25th percentile of 1, 2, 3, 4 is 1.75.
    """
    ordered = sorted(values)
    # Between which two: 25% of 1, 2, 3, 4 is at position 0.75, three quarters of the way from 1 to 2.
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


# -- provenance -------------------------------------------------------------------------------------


def cpu_model() -> str:
    """The processor's name as its maker gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def num_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions; a package that is not there is left out.

    Example: {"torch": "2.13.0", "numpy": "2.4.6"}.
    """
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit of this checkout, with "+changes" if files differ from it; None outside of git."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        # Numbers from changed files belong to no commit, and the report should say so.
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def provenance() -> dict[str, Any]:
    """Machine, versions, commit and date of the numbers beside it.

    Returns:
        Ready for JSON; None where the system does not tell. Nothing in it names a person or a folder, except
        what was typed on the command line.
    """
    # Here, as nothing else in this module needs it.
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "command_line": sys.argv[1:],
        "cpu": cpu_model(),
        "gpu": gpu,
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        # Above the number of threads in use, somebody else was computing too.
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": package_versions(["minivllm", "torch", "triton", "transformers", "numpy"]),
    }


def describe(where: dict[str, Any]) -> str:
    """One line of `provenance()` for people."""
    device = where["gpu"] or where["cpu"]
    versions = where["versions"]
    return (
        f"{device}, {where['cores']} cores, {where['threads']} threads, torch {versions.get('torch')}, "
        f"transformers {versions.get('transformers')}, Python {where['python']}, {where['date']}, "
        f"commit {(where['commit'] or 'unknown')[:12]}"
    )


def write_json(path: str | Path, result: dict[str, Any]) -> None:
    """Write a result; folders on the way are made.

    A file that is there already is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


# -- memory -----------------------------------------------------------------------------------------


def peak_rss_bytes() -> int | None:
    """The most memory this process had resident since `reset_peak_rss`; None where the system does not say.

    Not from `getrusage`: that one inherits the peak of the program that started this one.
    """
    return _status_bytes("VmHWM:")


def reset_peak_rss() -> None:
    """Let the peak start again from what is resident now. Where that cannot be done, it stays."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: see proc(5)


def resident_bytes() -> int | None:
    """Memory this process has resident now; None where the system does not say."""
    return _status_bytes("VmRSS:")


def _status_bytes(key: str) -> int | None:
    """A line of Linux's /proc/self/status, which counts in KiB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None

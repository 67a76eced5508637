"""The machine that a benchmark runs on: what it is, which versions and commit, how much memory is in use.

    >>> provenance()["cpu"], provenance()["load_average"]
    ('AMD EPYC', [0.12, 0.30, 0.41])

The load average counts the processes that want a core: above the number of threads in use, something else was
computing too. All of it comes from where Linux keeps it; other systems give None, and the reports say so.

vLLM V1: `vllm collect-env`.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

MIB = 1 << 20


def proc_value(path: str, key: str) -> str | None:
    """The value of the first line `key: value` of a file in /proc; None where there is no such line."""
    with suppress(OSError):
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return None


def available_cores() -> list[int]:
    """Numbers of the cores this process may use; in a container they are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Installed versions; a package that is not installed is left out."""
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
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
    """Machine, load, versions, commit and date, ready for JSON; None where the system does not tell.

    Nothing in it names a person or a folder, except what was typed on the command line.
    """
    # Here, as nothing else in this module needs it.
    import torch

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "command_line": sys.argv[1:],
        "cpu": proc_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": len(available_cores()),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": package_versions(["minivllm", "torch", "triton", "transformers", "numpy"]),
    }


# -- memory -----------------------------------------------------------------------------------------


def peak_rss_bytes() -> int | None:
    """The most memory this process had resident since `reset_peak_rss`; None where the system does not say.

    Not from `getrusage`, which inherits the peak of the program that started this one.
    """
    return _status_bytes("VmHWM")


def reset_peak_rss() -> None:
    """Let the peak start again from what is resident now. Where that cannot be done, it stays."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: see proc(5)


def resident_bytes() -> int | None:
    """Memory this process has resident now; None where the system does not say."""
    return _status_bytes("VmRSS")


def _status_bytes(key: str) -> int | None:
    """A line such as "VmRSS:   1234 kB" of /proc/self/status, in bytes."""
    value = proc_value("/proc/self/status", key)
    return None if value is None else int(value.split()[0]) * 1024

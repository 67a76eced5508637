"""Which measurements are older than the code they speak of: `bench stale`, `make bench-all`.

Each file in `docs/data/` says at which commit it was made, and by which command. The code that a command
measures is listed below; git knows which of it has changed since::

    cpu_serve.json       f834c0aee084  stale: minivllm/scheduler.py and 31 more
    memory.json          e40dfecde4ff  stale: minivllm/kv_cache_manager.py and 2 more
    cpu_headline.json    5093a58c01b2  up to date

    2 of 3 are stale. To measure them again, on a quiet machine:
      python -m minivllm bench serve --num-prompts 24 ... --output-json docs/data/cpu_serve.json

Code is compared without comments and docstrings: what explains it does not change what it does. A commit that
is not in this repository (rewritten, or from a copy without history) counts as stale, and so do
files measured with changes that were never committed. A commit may be named in `UNFELT` if old and new code
were run in turns and took the same time. vLLM V1 has no counterpart.
"""

from __future__ import annotations

import argparse
import ast
import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data"

POLICY = tuple(
    f"minivllm/{name}.py"
    for name in ("block_pool", "block_table", "sequence", "kv_cache_manager", "step_rules", "scheduler",
                 "scheduler_output", "scheduling_policy", "parallel_sampling", "beam_search")
)  # fmt: skip
# What a measurement depends on, by the "benchmark" that its file names; a folder stands for all in it. Files
# that change a report and not a number (printing, drawing, the command line) are left out.
# Comparing texts is no part of what other benchmarks measure.
BASELINES = tuple(
    f"minivllm/baselines/{path.name}"
    for path in sorted((ROOT / "minivllm" / "baselines").glob("*.py"))
    if path.stem != "compare"
)
UNFELT = Path("docs/data/unfelt_commits.txt")
"""Commits that changed code but no speed, as runs in turns show: a hash and the reason, line by line."""
ENGINE = ("minivllm/*.py", "minivllm/backends", *BASELINES, "kernels")
DEPENDS: dict[str, tuple[str, ...]] = {
    "throughput": ENGINE,
    "latency": ENGINE,
    "serve": ENGINE,
    "sharing": ENGINE,
    "compare": (*ENGINE, "minivllm/baselines/compare.py"),
    "headline": (*ENGINE, "minivllm/bench/evaluation/headline.py"),
    "step-time": (*ENGINE, "minivllm/bench/evaluation/step_time.py", "minivllm/bench/evaluation/validate.py"),
    "memory": (*POLICY, *BASELINES, "minivllm/bench/simulation.py", "minivllm/bench/workloads.py"),
    "paper": (*POLICY, *BASELINES, "minivllm/bench/simulation.py", "minivllm/bench/workloads.py",
              "minivllm/bench/evaluation"),
    "parallel": (*ENGINE, "minivllm/distributed", "minivllm/bench/parallel*.py"),
    "speculative": (*ENGINE, "minivllm/speculative", "minivllm/bench/speculative.py"),
    "http": (*ENGINE, "minivllm/server", "minivllm/bench/http.py",
             "minivllm/bench/load_generator.py"),
    "soak": (*ENGINE, "minivllm/server", "minivllm/bench/soak.py"),
    "gpu-report": (*ENGINE, "minivllm/bench/gpu_report.py"),
    "gpu-tests": ("kernels", "minivllm/bench/gpu_tests.py"),
    "plan": POLICY,
    "kernels": ("kernels",),
    "resources": ("kernels", "minivllm/aot"),
}  # fmt: skip


@dataclass(frozen=True)
class Freshness:
    """One file: the command that makes it, and the files that have changed since (empty: up to date).

    `changed` is None if git cannot tell.
    """

    path: Path
    commit: str
    command: str
    changed: tuple[str, ...] | None

    @property
    def is_stale(self) -> bool:
        """Whether it has to be measured again."""
        return self.changed is None or bool(self.changed)

    def __str__(self) -> str:
        if self.changed is None:
            why = "stale: its commit is not in this repository"
        elif self.changed:
            more = f" and {len(self.changed) - 1} more" if len(self.changed) > 1 else ""
            why = f"stale: {self.changed[0]}{more}"
        else:
            why = "up to date"
        return f"{self.path.name:<40}{self.commit[:12]:<14}{why}"


def code_of(source: str) -> str:
    """A text that two sources share exactly if they differ in comments, docstrings and layout at most.

    Python that cannot be parsed, and files of other languages, stand for themselves.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return source
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a text that stands alone does nothing
            node.body = [each for each in body if not _is_text(each)]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def unfelt(root: Path) -> set[str]:
    """The commits of `UNFELT`: the first word of each line, but for comments."""
    path = root / UNFELT
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=60)


def _code_at(commit: str, name: str, root: Path) -> str | None:
    """The code of one file at a commit; None: there is none."""
    shown = _git(root, "show", f"{commit}:{name}")
    return code_of(shown.stdout.decode(errors="replace")) if shown.returncode == 0 else None


def _differs(commit: str, name: str, root: Path) -> bool:
    """Whether the code of one file, relative to `root`, is another one now; a new or removed file is.

    What commits of `UNFELT` alone have changed does not count.
    """
    path = root / name
    now = code_of(path.read_text(errors="replace")) if path.exists() else None
    if _code_at(commit, name, root) == now:
        return False
    since = _git(root, "log", "--format=%H", f"{commit}..HEAD", "--", name).stdout.decode().split()
    changes = {each for each in since if _code_at(f"{each}^", name, root) != _code_at(each, name, root)}
    is_committed = _git(root, "diff", "--quiet", "HEAD", "--", name).returncode == 0
    return not (is_committed and changes and changes <= unfelt(root))


def changed_since(commit: str, paths: tuple[str, ...], root: Path = ROOT) -> tuple[str, ...] | None:
    """Files below `paths` whose code is another one than at `commit`; None: no such commit.

    "minivllm/*.py" is taken as a shell takes it: files of this folder alone.
    """
    specs = [f":(glob){path}" if "*" in path else path for path in paths]
    try:
        done = _git(root, "diff", "--name-only", commit, "--", *specs)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return tuple(name for name in sorted(done.stdout.decode().split()) if _differs(commit, name, root))


def freshness(path: Path, root: Path = ROOT) -> Freshness:
    """What git says about one file. ValueError: a benchmark whose code is not listed above."""
    result = json.loads(path.read_text(encoding="utf-8"))
    name, where = result["benchmark"], result["provenance"]
    if name not in DEPENDS:
        raise ValueError(
            f"{path.name}: the code behind benchmark {name!r} is unknown. List it in {__name__}."
        )
    commit = where.get("commit") or "unknown"
    clean = commit.removesuffix("+changes")
    # Measured on code that was never committed: it cannot be compared with anything.
    changed = None if clean != commit else changed_since(clean, DEPENDS[name], root)
    return Freshness(path, commit, command_for(path, where["command_line"]), changed)


def command_for(path: Path, words: list[str]) -> str:
    """The command that makes a file anew, in its place: it may have been copied there under another name."""
    words = list(words)
    if "--output-json" in words:
        words[words.index("--output-json") + 1] = f"docs/data/{path.name}"
    return shlex.join(["python", "-m", "minivllm", *words])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing to set but what to do about it."""
    parser.add_argument("--strict", action="store_true", help="exit with 1 if any file is stale")


def run(args: argparse.Namespace) -> int:
    """List every file, then the commands that renew the stale ones; -> 0, or 1 with `--strict`."""
    found = [freshness(path) for path in sorted(DATA.glob("*.json"))]
    print(*found, sep="\n")
    stale = [each for each in found if each.is_stale]
    print(
        f"\n{len(stale)} of {len(found)} are stale."
        + (" To measure them again, on a quiet machine:" if stale else "")
    )
    print(*(f"  {each.command}" for each in stale), sep="\n")
    return int(args.strict and bool(stale))

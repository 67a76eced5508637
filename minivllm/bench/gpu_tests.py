"""The kernel tests on a GPU, as a measurement: how many passed, which failed, in a file that is always whole.

    $ python -m minivllm bench gpu-tests --output-json docs/data/gpu_tests.json

They run twice. First all of them. Then, as a control, those of attention with `num_stages=1`: Triton is told
to keep no loads under way. Its pipeliner has miscompiled valid kernels (triton issues 8259, 11153), so a test
that fails only in the first run points to the compiler, and one that fails in both to the kernel::

    all kernel tests                    412 passed    0 failed
    attention with num_stages=1         131 passed    0 failed

Tests of what needs no GPU are left out, as they run everywhere else: those of the machine code, of the CPU's
own kernels, and of the interpreter with addresses beyond 32 bits (`test_kernel_gpu.py` has that for a GPU).
vLLM: `tests/kernels/`, which only ever runs on GPUs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minivllm.bench import report

FOLDER = Path(__file__).parents[2] / "tests" / "kernels"
WITHOUT_GPU = ("test_*_cpu.py", "test_kernel_aot.py", "test_kernel_int64.py")  # patterns of file names
ATTENTION = ("test_kernel_gpu.py", "test_kernel_paged_attention.py", "test_kernel_prefill_attention.py")
MOST_WORKERS = 8  # each holds a context on the GPU, and compiles on a core of its own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which tests, and where the results go."""
    parser.add_argument("--only", help="only tests whose name contains this (pytest's -k)")
    group = parser.add_argument_group("output")
    group.add_argument("--output-json", help="write the results to this file, after each test")


def run(args: argparse.Namespace) -> int:
    """Run the tests twice; -> 0 if all passed. ValueError: this is an installation without its tests."""
    if not FOLDER.is_dir():
        raise ValueError(f"bench gpu-tests needs a checkout: there is no folder {FOLDER}.")
    result = report.new_result("gpu-tests", runs=[])

    def save() -> None:
        if args.output_json:
            report.write_json(args.output_json, result)

    # What only a GPU can show comes first; pytest takes a file that is named twice once.
    everything = [
        str(FOLDER / ATTENTION[0]),
        str(FOLDER),
        *(f"--ignore-glob={FOLDER / pattern}" for pattern in WITHOUT_GPU),
    ]
    control = ["--num-stages=1", *(str(FOLDER / name) for name in ATTENTION)]
    workers = min(MOST_WORKERS, len(report.available_cores()))
    for name, arguments in (
        ("all kernel tests", everything),
        ("attention with num_stages=1", control),
    ):
        recorder = Recorder(name, save)
        result["runs"].append(recorder.record)
        options = ["-n", str(workers), "--dist", "worksteal", "--color=no", "-p", "no:cacheprovider"]
        only = ["-k", args.only] if args.only else []
        status = pytest.main([*options, *only, *arguments], plugins=[recorder])
        recorder.finish(int(status))
    print()
    print_report(result)
    return int(any(run["exit_status"] for run in result["runs"]))


class Recorder:
    """A pytest plugin that counts; `save` is called after each test, as the next one may be the last."""

    def __init__(self, name: str, save: Callable[[], None]) -> None:
        self.save, self.start = save, time.monotonic()
        # exit_status None: the run was cut short.
        self.record = {"name": name, "passed": 0, "failed": [], "seconds": 0.0, "exit_status": None}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one report; a test has three, and passes if its own does and no other fails."""
        if report.failed:
            self.record["failed"].append(f"{report.nodeid} ({report.when})")
        elif report.when == "call":
            self.record["passed"] += 1
        self.record["seconds"] = time.monotonic() - self.start
        if report.when == "call" or report.failed:
            self.save()

    def finish(self, exit_status: int) -> None:
        """Note pytest's exit status: 0 all passed, 1 some failed, more: it could not run them."""
        self.record |= {"exit_status": exit_status, "seconds": time.monotonic() - self.start}
        self.save()


def counts(run: report.Result) -> tuple[int, int]:
    """(passed, failed) of one run."""
    return run["passed"], len(run["failed"])


def print_report(result: report.Result) -> None:
    """A line for each run, then the tests that failed."""
    print(report.describe(result["provenance"]))
    rows = []
    for run in result["runs"]:
        ended = {None: "cut short", 0: "", 1: ""}.get(
            run["exit_status"], f"pytest ended with {run['exit_status']}"
        )
        passed, failed = counts(run)
        rows.append((run["name"], f"{passed} passed", f"{failed} failed", f"{run['seconds']:.0f} s", ended))
    print(report.table(rows))
    for run in result["runs"]:
        for name in run["failed"]:
            print(f"  failed, {run['name']}: {name}")

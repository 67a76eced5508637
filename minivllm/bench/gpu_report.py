"""Everything that only a GPU can tell, in stages: for a machine which may be lent for a quarter of an hour.

    $ make gpu-report                                         all stages, into docs/data or the folder $OUT
    $ OUT=results make gpu-report STAGES="tests kernels"      the most important ones
    $ python3 docs/make_performance.py                        afterwards: docs/gpu.md from the files

A stage is a process of its own with a limit on its time. It writes its file while it runs, after each test,
contender or round, and whatever becomes of it, the next stage begins. So a machine that is taken away loses
the rest of one stage. A report which is asked to end (SIGTERM) ends its stage first::

    tests      180 s   kernel tests, compiled; once more with num_stages=1      gpu_tests.json
    kernels    180 s   `bench kernels`: what the marks ask for comes first      gpu_kernels.json
    tune       120 s   `bench kernels --tune`, if a decode mark was missed      gpu_tune.json
    graphs     120 s   8 sequences with CUDA graphs and without them            gpu_graphs.json
    1b         150 s   64 requests against `generate_batch`, and eager          gpu_llama-3.2-1b.json
    8b         240 s   as 1b                                                    gpu_llama-3.1-8b.json

These are 990 s. `--seconds N` ends the report after N: each stage gets at most what is left of them, and a
stage for which nothing is left is not started. Where a command may not take so long, make two calls::

    $ OUT=results make gpu-report STAGES="tests kernels tune" GPU_REPORT="--seconds 500"
    $ OUT=results make gpu-report STAGES="graphs 1b 8b" GPU_REPORT="--seconds 350"

The second call keeps what `gpu_report.json` says of the first, if both are of one commit. Where it would
begin with an empty folder, copy the files of the first into it; `tune` looks there for `gpu_kernels.json`.

`gpu_report.json` says how each stage ended, and `gpu_report.log` holds all they printed. Nothing is fetched:
it runs on any Python that has torch, triton, transformers, numpy, numba and pytest with xdist and hypothesis.
The weights are random and as large as real ones. Where the code has come without its git, the variable
MINIVLLM_COMMIT says which it is.

vLLM: `.buildkite/` (its performance suite, one machine for each kind of GPU).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import torch

from minivllm.bench import kernel_report, options, report

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 10  # between the request to stop and the order
TAIL_LINES = 25  # of a stage's output, shown when it is over


@dataclass(frozen=True)
class Setting:
    """Where the results go, where the weights go, and whether this is a rehearsal on a machine without a GPU:
    the same commands on a tiny model.
    """

    results: Path
    models: Path
    rehearsal: bool

    def bench(self, file: str, *arguments: str) -> list[str]:
        """One `python -m minivllm bench` command that writes `file`."""
        return ["-m", "minivllm", "bench", *arguments, "--output-json", str(self.results / file)]


@dataclass(frozen=True)
class Stage:
    """Commands for Python, one after the other, and the seconds they may take together."""

    name: str
    seconds: float
    commands: Callable[[Setting], list[list[str]]]


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "done", "nothing to do", "not started: ...", or what went wrong."""

    stage: str
    outcome: str
    seconds: float


def tests(setting: Setting) -> list[list[str]]:
    """All kernel tests, and those with a GPU's own tiles once more without pipelining."""
    return [
        setting.bench("gpu_tests.json", "gpu-tests", *(["--only", "own_choice"] if setting.rehearsal else []))
    ]


def kernels(setting: Setting) -> list[list[str]]:
    """Every shape and contender; without a GPU it refuses, also in a rehearsal."""
    return [setting.bench("gpu_kernels.json", "kernels")]


def tune(setting: Setting) -> list[list[str]]:
    """The decode shape that missed its mark by most."""
    path = setting.results / "gpu_kernels.json"
    missed = kernel_report.missed_decode_shapes(json.loads(path.read_text())) if path.exists() else []
    return [setting.bench("gpu_tune.json", "kernels", "--tune", shape) for shape in missed[:1]]


def with_weights(setting: Setting, shape: str, file: str, *arguments: str) -> list[list[str]]:
    """`bench throughput` on random weights of `shape`, which are made first if they are not there."""
    shape = "tiny" if setting.rehearsal else shape
    model, complete = setting.models / shape, setting.models / shape / "complete"
    make = ["-m", "minivllm.weights.random_model", shape, str(model), "--device", "auto", "--mark-complete"]
    # KV blocks are given, because minivllm would take 90% of the GPU and leave nothing to the other backend.
    size = ["--model", str(model), "--num-blocks", "4096"]
    measure = setting.bench(file, "throughput", *size, *arguments)
    return [measure] if complete.exists() else [make, measure]


def engine(shape: str) -> Callable[[Setting], list[list[str]]]:
    """64 requests: minivllm, the same without CUDA graphs, `generate_batch`."""

    def commands(setting: Setting) -> list[list[str]]:
        number, repeats = ("4", "2") if setting.rehearsal else ("64", "3")
        backends = ["--backend", "minivllm", "minivllm-eager", "hf-continuous"]
        size = ["--num-prompts", number, "--repeats", repeats]
        return with_weights(setting, shape, f"gpu_{shape}.json", *backends, *size)

    return commands


def graphs(setting: Setting) -> list[list[str]]:
    """Eight sequences decoding, which is where the launches cost most."""
    size = ["--num-running", "8", "--output-len", "16" if setting.rehearsal else "256", "--repeats", "3"]
    return with_weights(
        setting, "llama-3.2-1b", "gpu_graphs.json", "--backend", "minivllm", "minivllm-eager", *size
    )


STAGES = (
    Stage("tests", 180, tests),
    Stage("kernels", 180, kernels),
    Stage("tune", 120, tune),
    Stage("graphs", 120, graphs),  # makes the weights of 1b too
    Stage("1b", 150, engine("llama-3.2-1b")),
    Stage("8b", 240, engine("llama-3.1-8b")),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which stages, and where files go."""
    names = [stage.name for stage in STAGES]
    add = parser.add_argument
    add("--stages", nargs="+", choices=names, default=names, help="which, in their own order")
    add("--seconds", type=options.positive_int, help="end after so many, whatever is left to do")
    add("--output-dir", type=Path, default=ROOT / "docs" / "data", help="folder of the results")
    add("--models-dir", type=Path, default=ROOT / "build", help="folder of the random weights, 19 GB")
    add("--rehearsal", action="store_true", help="the same on a tiny model, without a GPU")


def run(args: argparse.Namespace) -> int:
    """Run the stages; -> 0 if all are done, else 1. Without a GPU, unless it is a rehearsal, 1 at once."""
    if not torch.cuda.is_available() and not args.rehearsal:
        print("bench gpu-report needs a CUDA GPU, and torch sees none here. --rehearsal tries the commands.")
        return 1
    setting = Setting(args.output_dir.resolve(), args.models_dir.resolve(), args.rehearsal)
    setting.results.mkdir(parents=True, exist_ok=True)
    chosen = [stage for stage in STAGES if stage.name in args.stages]
    result, path = report.new_result("gpu-report", stages=[]), setting.results / "gpu_report.json"
    outcomes = earlier_outcomes(path, result["provenance"]["commit"])
    with ending_on_request():
        for outcome in run_stages(chosen, setting, args.seconds or math.inf):
            outcomes[outcome.stage] = asdict(outcome)
            result["stages"] = list(outcomes.values())
            # After each: the next one may be the one in which the machine goes.
            report.write_json(path, result)
    print()
    print_report(result)
    return int(any(not is_good(outcomes[stage.name]["outcome"]) for stage in chosen))


def earlier_outcomes(path: Path, commit: str | None) -> report.Result:
    """How the stages of an earlier call ended, by name; none if its commit is another one or not known."""
    if commit is None or not path.exists():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    of_this_commit = earlier["provenance"]["commit"] == commit
    return {stage["stage"]: stage for stage in earlier["stages"] if of_this_commit}


@contextmanager
def ending_on_request() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that `child` ends the stage, which does not get the signal itself."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the ending
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_good(outcome: str) -> bool:
    """Whether a stage ended as it should."""
    return outcome in ("done", "nothing to do")


def print_report(result: report.Result) -> None:
    """How each stage ended."""
    print(report.describe(result["provenance"]))
    rows = [(each["stage"], f"{each['seconds']:.0f} s", each["outcome"]) for each in result["stages"]]
    print(report.table([("stage", "took", "outcome"), *rows]))


def run_stages(stages: list[Stage], setting: Setting, seconds: float = math.inf) -> Iterator[Outcome]:
    """One after the other, whatever becomes of them; all have ended after `seconds`."""
    end = time.monotonic() + seconds
    for stage in stages:
        start = time.monotonic()
        left = end - start - GRACE_SECONDS  # a stage that is stopped may take so long to end
        if left <= 0:
            yield Outcome(stage.name, f"not started: the {seconds:.0f} s of the report were over", 0.0)
            continue
        stage = replace(stage, seconds=min(stage.seconds, left))
        with (setting.results / "gpu_report.log").open("a+b") as log:
            print(f"-- {stage.name}: at most {stage.seconds:.0f} s", flush=True)
            first = log.seek(0, os.SEEK_END)
            try:
                outcome = run_stage(stage, setting, log)
            except Exception as error:  # finding its commands failed: no reason to lose the stages after it
                outcome = f"{type(error).__name__}: {error}"
            log.seek(first)
            lines = log.read().decode(errors="replace").splitlines()
        print("\n".join(lines[-TAIL_LINES:]), flush=True)
        yield Outcome(stage.name, outcome, time.monotonic() - start)


def run_stage(stage: Stage, setting: Setting, log: IO[bytes]) -> str:
    """Run the commands of a stage until one fails or the time is over; -> its outcome."""
    end = time.monotonic() + stage.seconds
    commands = stage.commands(setting)
    for command in commands:
        log.write(f"\n-- {stage.name}: python {' '.join(command)}\n".encode())
        log.flush()
        with child(command, log) as process:
            try:
                status = process.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                return f"stopped after {stage.seconds:.0f} s; its file has what was measured by then"
        if status != 0:
            return f"failed with exit status {status}; see the log"
    return "done" if commands else "nothing to do"


@contextmanager
def child(command: list[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process with its output in `log`; behind the block it and all that it started have ended."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",  # nothing may be fetched: without a network each try costs a minute
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    # A session of its own: pytest's workers and the compilers are to end with it.
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        yield process
    finally:
        end_session(process)


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Ask every process of the session to end, then make them. Returns when the first one has ended."""
    for request, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, request)
        except ProcessLookupError:  # all have ended
            break
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()

"""Run exercise tests in a process of their own, and bring their records home.

A process of its own, because the code under test is somebody's first attempt: it may end the process, fill
the memory or never end; and because a notebook that has imported a file once would not see its next version.

    check 4  ->  pytest tests/exercises/test_ch04_block_table.py --impl student --grade records.jsonl
                 records.jsonl: one line a test, written as it happens (`records.py`)

Tests that left no record, because the process ended before their turn, get one here: a test that was
collected never goes missing from a grade.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from minivllm.course.catalog import ROOT, TESTS, CourseError, Target
from minivllm.course.records import PROCESS_ENDED, TIME_LIMIT, Record, RunLog, read_log


@dataclass(frozen=True)
class RunOptions:
    """How to run: `seed` draws other random workloads, the limits are seconds a test and a run.

    `real`: only the tests inside the engine, with SmolLM2-135M in place of a tiny random model.
    """

    seed: int = 0
    time_limit: float = 20.0
    run_limit: float = 600.0
    real: bool = False


def run_tests(impl: str, targets: list[Target], options: RunOptions | None = None) -> list[Record]:
    """Test `impl` (see `implementations.py`) on some chapters, or on one exercise.

    Returns:
        One record for each test there is.

    Raises:
        CourseError: the tests themselves could not run, or there are none.
    """
    options = options or RunOptions()
    with tempfile.TemporaryDirectory(prefix="minivllm-course-") as folder:
        path = Path(folder) / "records.jsonl"
        output, timed_out = _run_pytest(impl, targets, options, path)
        log = read_log(path)
    if not log.tests:
        raise CourseError(f"no test ran. This is what pytest said:\n{output.strip()}")
    return complete(log, timed_out)


def _run_pytest(impl: str, targets: list[Target], options: RunOptions, path: Path) -> tuple[str, bool]:
    """Run pytest until it ends or `run_limit` is over; (what it printed, whether it was stopped)."""
    command = [sys.executable, "-m", "pytest", *(str(TESTS / f"test_{t.chapter}.py") for t in targets)]
    # --confcutdir: the exercises do not depend on the fixtures of the engine's own tests. --assert=plain: the
    # tests say themselves what they expected, and rewriting hypothesis would take seconds.
    command += [f"--confcutdir={TESTS}", "-p", "no:cacheprovider", "--assert=plain", "-q"]
    command += [f"--impl={impl}", f"--grade={path}", f"--time-limit={options.time_limit}"]
    if options.seed:
        command += [f"--seed={options.seed}", f"--hypothesis-seed={options.seed}"]
    if options.real:
        command.append("--real")
    if len(targets) == 1 and targets[0].exercise is not None:
        command.append(f"--exercise={targets[0].exercise}")
    # Tiny tensors: more threads would only wait for each other. And no pytest options from the user's
    # environment: -x would end the run at the first failure.
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    environment.pop("PYTEST_ADDOPTS", None)
    # No standard input: code that asks for some gets an EOFError, in place of waiting for nobody.
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=options.run_limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"").decode(errors="replace"), True
    return done.stdout.decode(errors="replace"), False


def complete(log: RunLog, timed_out: bool) -> list[Record]:
    """The records of a run, with one for each test that has none because the run broke off.

    Example: a, b and c were collected, a has passed, b was running when the process ended. Then a stays
    "passed", b and c are "ended the process", and c's message says that it never ran.
    """
    done = {record.test for record in log.records}
    records = list(log.records)
    for test in log.tests:
        if test["test"] in done:
            continue
        status = TIME_LIMIT if timed_out else PROCESS_ENDED
        if log.running.endswith(f"::{test['test']}"):
            message = (
                "the run took too long." if timed_out else "the process ended here: sys.exit, or a crash?"
            )
        else:
            message = "not run: the process had ended before."
        records.append(Record(status=status, message=message, **test))
    order = [test["test"] for test in log.tests]
    return sorted(records, key=lambda record: order.index(record.test))

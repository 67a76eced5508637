"""Run exercise tests in a process of their own, and collect their records.

They need their own process because the code under test is a first attempt: it may end the process, fill the
memory or run for ever; and because a notebook that has imported a file once would not see its next version::

    this process                                          the process of the tests, a process group of its own
    lists the tests (`cases.py`)
    makes a secret                    --- pipe -->        keeps it for the signatures, closes the pipe
    the course's own folder           --- pipe -->        to guard it; no argument names it
    checks each signature             <-- pipe ---        {"start": ...}, {"timed": true}, {"test": ...}
    more than limit + 3 s of one test, or 600 s in all    killed, with everything it has started
    a line without a signature                            killed; none of its tests counts
    the process is gone                                   tests without a record get one here

The end of the pipe is not waited for: a child that the code under test has forked may hold it open.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from minivllm.course.cases import Case, cases_of
from minivllm.course.catalog import ROOT, CourseError, Target
from minivllm.course.records import (
    NOT_COUNTED,
    PASSED,
    PROCESS_ENDED,
    TAMPERED,
    TIME_LIMIT,
    Receiver,
    Record,
)

# Seconds that the exception of the time limit has to end a test, before the process is killed from outside.
GRACE = 3.0
# Said where no exercise can be checked: the time limit could not end what the code under test has started.
NEEDS_GROUPS = "Use WSL 2 or Linux; Windows has no process groups."
# One thread, because with tiny tensors more would only wait for each other. No pytest options from the user's
# environment: -x would end the run at the first failure. No plugin but the one that is needed.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "",
}  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """How to run: `seed` draws other random workloads, the limits are seconds per test and per run.

    `real`: only the tests inside the engine, with SmolLM2-135M in place of a tiny random model.
    """

    seed: int = 0
    time_limit: float = 20.0
    run_limit: float = 600.0
    real: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a process of tests left behind: what came through the pipe, and what it printed."""

    received: Receiver
    is_timed_out: bool
    output: str


def run_tests(
    impl: str, targets: list[Target], options: RunOptions | None = None, tree: Path = ROOT
) -> list[Record]:
    """Test `impl` (see `implementations.py`) on some chapters, or on one exercise.

    Args:
        tree: the checkout whose tests and engine run; grading gives each submission a copy of its own.

    Returns:
        One record for each test there is, in the order of the files.

    Raises:
        CourseError: the tests themselves could not run, or there are none.
    """
    options = options or RunOptions()
    cases = [case for target in targets for case in cases_of(target, options.real)]
    outcome = run_process(impl, targets, options, tree)
    if not cases or not (outcome.received.num_lines or outcome.received.is_tampered):
        raise CourseError(f"no test ran. This is what pytest said:\n{outcome.output.strip()}")
    return complete(cases, outcome)


def can_run() -> bool:
    """Whether this system has the process groups that a run of the tests needs; Windows has none."""
    return hasattr(os, "killpg")


def run_process(impl: str, targets: list[Target], options: RunOptions, tree: Path = ROOT) -> Outcome:
    """Start the tests, read what they send, and end the process and all that it has started.

    Raises:
        CourseError: this system cannot do that; see `can_run`.
    """
    if not can_run():
        raise CourseError(f"exercises cannot be checked on this system. {NEEDS_GROUPS}")
    key = secrets.token_hex(32).encode()
    secret_out, secret_in = os.pipe()
    lines_out, lines_in = os.pipe()
    with tempfile.TemporaryFile() as printed, os.fdopen(lines_out, "rb", buffering=0) as lines:
        command = [*_command(impl, targets, options, tree), f"--report={secret_out},{lines_in}"]
        # No standard input: code that asks for input gets an EOFError, and does not wait.
        process = subprocess.Popen(
            command, cwd=tree, env=_environment(tree), stdin=subprocess.DEVNULL, stdout=printed,
            stderr=subprocess.STDOUT, pass_fds=(secret_out, lines_in), start_new_session=True,
        )  # fmt: skip
        os.close(secret_out)
        os.close(lines_in)
        with os.fdopen(secret_in, "wb") as secret:
            secret.write(key + b"\n" + os.fsencode(ROOT))
        try:
            received, is_timed_out = _receive(process, lines, Receiver(key), options)
        finally:
            # The group has the number of its first process. An interrupt in this process ends the group too.
            _kill(process)
        printed.seek(0)
        return Outcome(received, is_timed_out, printed.read().decode(errors="replace"))


def _environment(tree: Path) -> dict[str, str]:
    """The environment of the tests: this one's, but that no PWD tells a submission where the course lies."""
    environment = os.environ | ENVIRONMENT | {"PWD": str(tree)}
    environment.pop("OLDPWD", None)
    return environment


def _command(impl: str, targets: list[Target], options: RunOptions, tree: Path) -> list[str]:
    """The command line of the tests, without the pipes."""
    command = [sys.executable, "-m", "pytest", *(f"tests/exercises/test_{t.chapter}.py" for t in targets)]
    # --confcutdir: the exercises do not depend on the fixtures of the engine's own tests. --assert=plain: the
    # tests say themselves what they expected, and rewriting hypothesis would take seconds.
    # --tb=line: failures come through the pipe; looking up their source lines would take half of the time.
    command += ["--confcutdir=tests/exercises", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]
    command += ["--assert=plain", "-q", "--tb=line", f"--impl={impl}", f"--time-limit={options.time_limit}"]
    if options.seed:
        command += [f"--seed={options.seed}", f"--hypothesis-seed={options.seed}"]
    if options.real:
        command.append("--real")
    if len(targets) == 1 and targets[0].exercise is not None:
        command.append(f"--exercise={targets[0].exercise}")
    return command


def _receive(
    process: subprocess.Popen[bytes], lines: IO[bytes], received: Receiver, options: RunOptions
) -> tuple[Receiver, bool]:
    """Read until the process ends, is too late, or sends what it should not: (lines, whether too late)."""
    os.set_blocking(lines.fileno(), False)
    end_of_run = time.monotonic() + options.run_limit
    end_of_test = end_of_run
    with selectors.DefaultSelector() as selector:
        selector.register(lines, selectors.EVENT_READ)
        while not received.is_tampered:
            has_ended = process.poll() is not None  # asked before reading, so nothing it sent is missed
            selector.select(0 if has_ended else 0.05)
            while data := lines.read(1 << 16):
                seen = received.num_lines
                received.feed(data)
                if received.num_lines > seen:
                    limit = options.time_limit + GRACE if received.is_timed else options.run_limit
                    end_of_test = time.monotonic() + limit
                if received.is_tampered:
                    break
            if (
                data == b"" and not has_ended
            ):  # closed by the process: there is nothing to wait for but its end
                time.sleep(0.05)
            if has_ended:
                return received, False
            if time.monotonic() > min(end_of_test, end_of_run):
                return received, True
    return received, False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group; whether it still runs or not."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def complete(cases: list[Case], outcome: Outcome) -> list[Record]:
    """One record per test: the one that came, or one that says why none came.

    Example: a, b and c are the tests, a has passed, b was running when the process ended. Then a stays
    "passed", b and c are "ended the process", and c's message says that c did not run.
    """
    received = outcome.received
    names = [each["test"] for each in received.records]
    known = {case.test: case for case in cases}
    if received.is_tampered or len(set(names)) < len(names) or set(names) - known.keys():
        message = "results came that the tests have not written, so no test of this run counts."
        return [case.record(TAMPERED, message=message) for case in cases]
    done = {each["test"]: known[each["test"]].record(**_details(each)) for each in received.records}
    status = TIME_LIMIT if outcome.is_timed_out else PROCESS_ENDED
    records = [done.get(case.test) or case.record(status, message=_missing(case, outcome)) for case in cases]
    return count_by_keys(cases, records)


def count_by_keys(cases: list[Case], records: list[Record]) -> list[Record]:
    """The records, but that no test of an exercise counts as passed whose key test did not pass.

    Example, the test of m5 that is its key has failed: another one that passed is "passes, but the key test
    does not", and gives no points. An exercise without a key test, as those of the chapters, stays as it is.
    """
    status = {record.test: record.status for record in records}
    keys = {case.exercise: case.test for case in cases if case.is_key and status[case.test] != PASSED}
    return [
        replace(record, status=NOT_COUNTED, message=f"it counts once {keys[record.exercise]} passes.")
        if record.status == PASSED and record.exercise in keys
        else record
        for record in records
    ]


def _details(line: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that only the run can know."""
    return {name: value for name, value in line.items() if name != "test"}


def _missing(case: Case, outcome: Outcome) -> str:
    """Why a test has no record."""
    if outcome.received.running != case.test:
        return "not run: the process had ended before."
    if outcome.is_timed_out:
        return "the process had to be killed: a loop that does not end, and that no exception reaches?"
    return "the process ended here: os._exit, or a crash?"

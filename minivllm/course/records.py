"""What a test run reports: one `Record` a test, written as soon as it is known.

The tests run in a process of their own (`run.py`), and the code under test may end that process, or never
end. So the records are lines of JSON in a file, and a line that says which test is about to run comes first:
if that was the last line, we know which test it was::

    {"start": "tests/exercises/test_ch04_block_table.py::test_a_full_block_opens_no_new_one"}
    {"test": "test_a_full_block_opens_no_new_one", "exercise": "ex04a", "points": 2, "status": "passed", ...}
    {"finished": 14}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PASSED = "passed"
NOT_WRITTEN = "not written yet"
WRONG = "wrong result"
CRASHED = "error in the code"
TIME_LIMIT = "time limit"
PROCESS_ENDED = "ended the process"


@dataclass(frozen=True)
class Record:
    """How one test went.

    Attributes:
        status: "passed", "not written yet", "wrong result", "error in the code", "time limit", "ended the
            process", or the kind of a `SubmissionError` ("syntax error", "empty file", ...).
        reason: the test's docstring: the bug that it catches.
        hint: what to think about next.
        message: expected and got, or the error.
        where: the line of the student's file that failed, if one did.
        exception: name of the exception's class; empty if there was none.
        variant: the value of `--impl` that the test ran with, if there were several.
        printed: the end of what was printed meanwhile: a student looks for a mistake with `print`.
    """

    test: str
    exercise: str
    points: float
    status: str
    reason: str = ""
    hint: str = ""
    message: str = ""
    where: str = ""
    exception: str = ""
    variant: str = ""
    printed: str = ""

    @property
    def score(self) -> float:
        """The points this test gives."""
        return self.points if self.status == PASSED else 0.0


@dataclass(frozen=True)
class RunLog:
    """The file of one run, read. `running` is the test that was under way when it broke off; "" if none."""

    records: list[Record]
    tests: list[dict[str, Any]]  # every collected test: the fields of a `Record` known before it runs
    running: str
    finished: bool


class RecordWriter:
    """Appends to the file of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        """Add one line, and make sure it is on disk before anything else happens."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def add(self, record: Record) -> None:
        """Add one record."""
        self.write(asdict(record))


def read_log(path: Path) -> RunLog:
    """Read what a `RecordWriter` wrote; an empty log if the run did not get that far."""
    records, tests, running, finished = [], [], "", False
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        data = json.loads(line)
        if "collected" in data:
            tests = data["collected"]
        elif "start" in data:
            running = data["start"]
        elif "finished" in data:
            finished = True
        else:
            records.append(Record(**data))
            running = ""
    return RunLog(records, tests, running, finished)

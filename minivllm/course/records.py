"""What a test run reports: one `Record` per test, sent as soon as it is known, and signed.

The tests run in a process of their own (`run.py`), and the code under test may end that process, run for
ever, or write something itself. So the records are lines that come through a pipe; before each test comes a
line that says which test is about to run. Each line begins with a signature, made with a secret of this run::

    5f0c...  {"start": "test_a_full_block_opens_no_new_one"}
    91ab...  {"test": "test_a_full_block_opens_no_new_one", "status": "passed", ...}
    {"status": "passed"}   written by the student's code, unsigned: nothing of this run counts

The number of the line is signed too, so a line cannot be sent twice, left out or moved. No line says which
tests there are: the receiver has listed them before (`cases.py`).
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PASSED = "passed"
NOT_WRITTEN = "not written yet"
WRONG = "wrong result"
CRASHED = "error in the code"
TIME_LIMIT = "time limit"
PROCESS_ENDED = "ended the process"
TAMPERED = "made-up results"
COPIED = "uses the reference"
NOT_COUNTED = "passes, but the key test does not"
FORBIDDEN = "uses what is to be written"

# Bytes that may wait for the end of their line: a record holds at most some thousand characters.
LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Record:
    """How one test went.

    Attributes:
        status: one of the words above, or the kind of a `SubmissionError` ("syntax error", ...).
        reason: the test's docstring: the bug that it catches.
        hint: what to think about next.
        message: expected and got, or the error.
        where: the line of the student's file that failed, if one did.
        exception: name of the exception's class; empty if there was none.
        variant: the value of `--impl` that the test ran with, if there were several.
        printed: the end of what was printed meanwhile: a student looks for a mistake with `print`.
        measured: what the test measured, whether it passed or not: {"goodput": 0.871} in the capstone.
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
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The points this test gives."""
        return self.points if self.status == PASSED else 0.0


def sign(key: bytes, number: int, text: bytes) -> bytes:
    """The signature of line `number` (from 0) of a run; 64 hexadecimal digits."""
    return hmac.new(key, b"%d " % number + text, "sha256").hexdigest().encode()


class Sender:
    """Writes signed lines into a pipe. The process that runs the tests has one; see `Receiver`."""

    def __init__(self, descriptor: int, key: bytes) -> None:
        self._descriptor, self._key, self._number = descriptor, key, 0

    def send(self, line: dict[str, Any]) -> None:
        """Write one line; it has left this process when the call returns."""
        # ASCII only: a student's message may hold half a surrogate pair, which has no bytes in UTF-8.
        text = json.dumps(line).encode("ascii")
        data = sign(self._key, self._number, text) + b" " + text + b"\n"
        self._number += 1
        while data:
            data = data[os.write(self._descriptor, data) :]


def means(records: Sequence[Record]) -> dict[str, float]:
    """What the tests of one exercise measured: the mean of each quantity; {} if they measure nothing."""
    found: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.measured.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


@dataclass
class Receiver:
    """Takes the bytes that came out of the pipe, and keeps the lines whose signature is right.

    Attributes:
        records: the lines about tests that have run, in order.
        running: the test under way; "" if there is none.
        is_timed: whether code under test is running now (as opposed to the preparation of a test).
        is_tampered: something came that the `Sender` of this run has not written.
    """

    key: bytes
    records: list[dict[str, Any]] = field(default_factory=list)
    running: str = ""
    is_timed: bool = False
    is_tampered: bool = False
    num_lines: int = 0
    rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take more bytes. All that follows a line without a right signature is ignored."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.is_tampered = self.is_tampered or len(self.rest) > LONGEST_LINE
        for line in lines:
            signature, _, text = line.partition(b" ")
            if self.is_tampered or not hmac.compare_digest(signature, sign(self.key, self.num_lines, text)):
                self.is_tampered = True
                return
            self.num_lines += 1
            self._take(json.loads(text))

    def _take(self, line: dict[str, Any]) -> None:
        """One line that is authentic."""
        if "start" in line:
            self.running = line["start"]
        elif "timed" in line:
            self.is_timed = line["timed"]
        else:
            self.records.append(line)
            self.running, self.is_timed = "", False

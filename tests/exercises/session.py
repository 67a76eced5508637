"""One run of the exercise tests: the code under test, loaded once, and the time it may take.

`conftest.py` holds the hooks that pytest calls; what they share during a run is here::

    --impl student                   Session.choices            ["student"]
                                     Session.implementations    {"student": the folder notebooks/exercises}
    first test of chapter 4          Session.load(...)          runs ch04_block_table.py, timed, and keeps it
    its other tests                  Session.load(...)          the same module, or the same error, at once
    each test                        time_limit(20, ...)        TimeLimit after 20 s; the process dies at 25

The time limit has two stages because code that loops may also swallow what interrupts it. Stage one raises
`TimeLimit` in the main thread, twice a second until it gets through; the run goes on, without the other tests
of that exercise. Stage two, five seconds later, ends the process; `minivllm.course.run` then gives the tests
that had no turn their records.
"""

import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from minivllm.course import implementations, records
from minivllm.course.implementations import Implementation, SubmissionError

# -- the time limit ---------------------------------------------------------------------------------

STUCK = "the process had to be killed: a loop that does not end, and that swallows every exception?"


class TimeLimit(BaseException):
    """Not an Exception: neither the student's `except Exception` nor hypothesis may swallow it."""


@contextmanager
def time_limit(seconds, when_stuck):
    """Raise TimeLimit in what runs too long, again and again until it is heard; at last, kill the process.

    Only the code under test and the test are timed, not the fixtures: importing torch is nobody's fault.
    """

    def on_alarm(signum, frame):
        raise TimeLimit(f"no result after {seconds:g} seconds: a loop that does not end?")

    def kill():
        when_stuck()
        os._exit(1)

    killer = threading.Timer(seconds + 5, kill)
    killer.daemon = True
    killer.start()
    has_alarm = hasattr(signal, "setitimer")  # not on Windows; there the killer is all there is
    if has_alarm:
        previous = signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        killer.cancel()


class Session:
    """State of one run: the code to test, loaded once, and what has run out of time.

    `choices` are values of `--impl`: one as a rule, or several, and then each test runs with those that
    concern it ("mutants" stands for every mutant, each with the test that it names).
    """

    def __init__(self, config):
        self.choices = []
        for option in config.getoption("impl").split(","):
            kind = option.removesuffix("s")
            names = implementations.variant_names(kind) if kind in implementations.VARIANTS else []
            self.choices += [f"{kind}:{name}" for name in names] or [option]
        try:
            self.implementations = {each: Implementation.from_option(each) for each in self.choices}
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        self.writer = None
        if config.getoption("grade"):
            self.writer = records.RecordWriter(Path(config.getoption("grade")))
            self.writer.path.unlink(missing_ok=True)
        self.seconds = config.getoption("time_limit")
        self.stub = Implementation.from_option("stub")
        self.loaded = {}
        self.out_of_time = set()
        self.model = self.text = None
        self.has_submission = any(each.is_submission for each in self.implementations.values())
        if self.has_submission:
            implementations.block_solutions()

    def choices_for(self, test, exercise):
        """Those of `choices` that a test has to run with, when there are several."""
        chosen = []
        for choice in self.choices:
            kind, _, name = choice.partition(":")
            wrong_exercise = kind in implementations.VARIANTS and not name.startswith(exercise)
            if wrong_exercise or (kind == "mutant" and implementations.caught_by(name) != test):
                continue
            chosen.append(choice)
        return chosen

    def load(self, chapter, choice):
        """The chapter's module; a failure is remembered too, for it would be the same each time."""
        key = chapter, choice
        if key not in self.loaded:
            self.loaded[key] = SubmissionError(
                records.TIME_LIMIT, f"{chapter}.py does not come to an end when it is imported."
            )
            self.stub.load(chapter)  # imports what the stub imports, untimed
            try:
                with time_limit(self.seconds, lambda: None):
                    self.loaded[key] = self.implementations[choice].load(chapter)
            except SubmissionError as error:
                self.loaded[key] = error
        if isinstance(self.loaded[key], SubmissionError):
            raise self.loaded[key]
        return self.loaded[key]


class MissingDefinition(SubmissionError, AttributeError):
    """An AttributeError too, so that `hasattr` works on `StudentCode`."""


class StudentCode:
    """The module under test. A name that it lacks is told as what it is."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        try:
            return getattr(self._module, name)
        except AttributeError:
            file = Path(self._module.__file__).name
            raise MissingDefinition(
                "missing definition", f"{file} does not define {name}. Keep the stub's names."
            ) from None

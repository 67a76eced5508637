"""One run of the exercise tests: the code under test, loaded once, and the time it may take.

`conftest.py` holds the hooks that pytest calls; what they share during a run is here::

    --impl student                   Session.choices            ["student"]
                                     Session.implementations    {"student": the folder notebooks/exercises}
    first test of chapter 4          Session.load(...)          runs ch04_block_table.py, timed, and keeps it
    its other tests                  Session.load(...)          the same module, or the same error, at once
    each test                        session.timed()            TimeLimit after 20 s

The time limit here is an exception in the main thread, raised twice a second until it gets through; the run goes on,
without the other tests of that exercise. Code that loops may swallow it, or loop inside C, where no exception comes
through. So `minivllm.course.run` is told when code under test begins to run, and kills the process from outside.
"""

import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from minivllm.course import implementations, records
from minivllm.course.catalog import PROJECT
from minivllm.course.implementations import Implementation, SubmissionError

# -- the time limit ---------------------------------------------------------------------------------


class TimeLimit(BaseException):
    """Not an Exception: neither the student's `except Exception` nor hypothesis may swallow it."""


@contextmanager
def time_limit(seconds):
    """Raise TimeLimit in what runs too long, again and again until it is heard.

    Only the code under test and the test are timed, not the fixtures: importing torch takes its time.
    """

    def on_alarm(signum, frame):
        raise TimeLimit(f"no result after {seconds:g} seconds: a loop that does not end?")

    if not hasattr(signal, "setitimer"):  # not on Windows
        yield
        return
    previous = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def open_report(descriptors):
    """(a `records.Sender`, the course's own folder) for "R,W": the run's secret and the folder are read from R.

    Neither is an argument of this process: a submission would find it in `sys.argv`.
    """
    secret, lines = map(int, descriptors.split(","))
    with os.fdopen(secret, "rb") as file:
        key, _, root = file.read().partition(b"\n")
    os.set_inheritable(lines, False)
    return records.Sender(lines, key), Path(os.fsdecode(root))


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
        report = config.getoption("report")
        self.sender, root = open_report(report) if report else (None, implementations.ROOT)
        self.seconds = config.getoption("time_limit")
        self.stub = Implementation.from_option("stub")
        self.loaded = {}
        self.out_of_time = set()
        self.model = self.text = None
        self.has_submission = any(each.is_submission for each in self.implementations.values())
        if self.has_submission:
            implementations.guard_course(root)

    def send(self, line):
        """Tell the process that started this one, if there is one."""
        if self.sender is not None:
            self.sender.send(line)

    @contextmanager
    def timed(self):
        """What runs in here is code under test: it may take `seconds`, and is killed from outside soon after."""
        self.send({"timed": True})
        with time_limit(self.seconds):
            yield
        self.send({"timed": False})

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
            if chapter not in PROJECT.values():
                self.stub.load(chapter)  # imports what the stub imports, untimed
            try:
                with self.timed():
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

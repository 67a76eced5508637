"""Which tests there are, read from the test files and not from the process that runs them.

A grade must not depend on what a submission says about the tests. So the process that hands out the points
lists the tests itself; a test without a result counts as failed, and `max_score` is the same for all. The
files are the course's own, and they are parsed and not imported: no pytest, no torch, some milliseconds::

    @pytest.mark.exercise("ex04a", points=1, hint="Round up.")          Case("test_a_started_block_...",
    def test_a_started_block_counts_whole(ex):                     ->        "ex04a", 1, "A block ...",
        \"\"\"A block that holds one token is taken all the same.\"\"\"              "Round up.", ("ex",))
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from minivllm.course.catalog import TESTS, Target
from minivllm.course.records import Record

# The fixtures that a test asks for if it puts the exercise into the engine and compares the text.
TEXT_FIXTURE = "reference_text"


@dataclass(frozen=True)
class Case:
    """One test: its name, what it is worth, why it is there (`reason`) and what to think about (`hint`).

    `is_key`: no test of the exercise gives points unless this one passes. A milestone of the project has such
    a test, as an engine that does nothing new passes many of the others.
    """

    test: str
    exercise: str
    points: float
    reason: str
    hint: str
    fixtures: tuple[str, ...]
    is_key: bool = False

    def record(self, status: str, **details: Any) -> Record:
        """The record of this test with this outcome; `details` are fields of `Record`."""
        return Record(self.test, self.exercise, self.points, status, self.reason, self.hint, **details)


def cases_of(target: Target, real: bool = False) -> list[Case]:
    """The tests of a chapter or an exercise, in the order of their file.

    Args:
        real: only those that compare a text, as `show` wants them.
    """
    tree = ast.parse((TESTS / f"test_{target.chapter}.py").read_text(encoding="utf-8"))
    cases = [
        _case(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    return [
        case
        for case in cases
        if target.exercise in (None, case.exercise) and (not real or TEXT_FIXTURE in case.fixtures)
    ]


def _case(function: ast.FunctionDef) -> Case:
    """Read one test function. ValueError if it lacks its exercise, its points, its hint or its reason."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.exercise":
            options = {each.arg: ast.literal_eval(each.value) for each in decorator.keywords}
            # First paragraph, on one line.
            reason = " ".join((ast.get_docstring(function) or "").split("\n\n")[0].split())
            fixtures = tuple(argument.arg for argument in function.args.args)
            if reason and {"points", "hint"} <= options.keys():
                exercise = ast.literal_eval(decorator.args[0])
                points, hint, is_key = options["points"], options["hint"], options.get("key", False)
                return Case(function.name, exercise, points, reason, hint, fixtures, is_key)
    raise ValueError(f"{function.name} needs @pytest.mark.exercise(id, points=, hint=) and a docstring.")

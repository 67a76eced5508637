"""Which chapters and exercises there are, and where their files lie.

The list of exercises is read from the stubs themselves: an exercise is a function or method whose body is
`raise NotImplementedError("ex04b")`. There is no second list to keep in step::

    >>> [exercise.id for exercise in exercises_of("ch04_block_table")]
    ['ex04a', 'ex04b', 'ex04c']
    >>> parse_target("4"), parse_target("ch04"), parse_target("ex04b")
    (Target('ch04_block_table', None), Target('ch04_block_table', None), Target('ch04_block_table', 'ex04b'))
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# A checkout, not an installed package: tests and notebooks are not installed (`require_checkout`).
ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "exercises"
# Made from the solutions and never edited; the list of exercises is read from here.
STUBS = TESTS / "stubs"
# Missing in the copy for students.
SOLUTIONS = TESTS / "solutions"
STUDENT = ROOT / "notebooks" / "exercises"

# By the number of the notebook. Chapter 0 has no exercises.
CHAPTERS = {
    1: "ch01_llama_forward",
    2: "ch02_kv_cache",
    3: "ch03_naive_batching",
    4: "ch04_block_table",
    5: "ch05_kv_paging",
    6: "ch06_continuous_batching",
    7: "ch07_preemption",
    8: "ch08_sampler",
    9: "ch09_sharing",
    10: "ch10_triton_kernel",
    11: "ch11_together",
    12: "ch12_requests_arrive",
    13: "ch13_two_workers",
    14: "ch14_same_text",
    15: "ch15_paper_figures",
    16: "ch16_guess_and_check",
}

# The final project. Each milestone is an exercise with a file of tests of its own (here without "test_" and
# ".py"), and all of them test one file, PROJECT_FILE.
MILESTONES = {
    "m1": "project_1_loop",
    "m2": "project_2_kv_cache",
    "m3": "project_3_static_batches",
    "m4": "project_4_continuous",
    "m5": "project_5_paging",
    "m6": "project_6_prefix_and_chunks",
}
# With what `project leaderboard` runs, which is not a milestone and gives no points.
PROJECT = MILESTONES | {"speed": "project_speed"}
PROJECT_FILE = "my_engine.py"


class CourseError(Exception):
    """Something the user of a course command has to know; the message says what to do."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: `name` is what the student writes, `definition` the function or class at top level.

    Both are "append_tokens" for a function. For a method `name` is "Class.method" and `definition` "Class":
    the search for problems and `reset` know whole definitions only.
    """

    id: str
    chapter: str
    name: str
    definition: str


@dataclass(frozen=True)
class Target:
    """What a command is about: a chapter, or one exercise of it."""

    chapter: str
    exercise: str | None


def require_checkout() -> None:
    """Raise CourseError unless the exercises are there: they are not part of an installed package."""
    if not STUBS.is_dir():
        raise CourseError(
            f"there are no exercises at {TESTS}: the course runs from a checkout of the repository "
            f"(pip install -e .), not from an installed package."
        )


def chapters() -> list[str]:
    """File names (without .py) of the chapters that have exercises here, in order."""
    require_checkout()
    return [stem for stem in CHAPTERS.values() if (STUBS / f"{stem}.py").exists()]


@cache
def exercises_of(chapter: str) -> tuple[Exercise, ...]:
    """The exercises of a chapter, in the order of its file. A milestone of the project is one exercise.

    The file is parsed and not imported, so that the command line can list exercises without loading torch.
    The result is remembered, because a stub does not change while the program runs.
    """
    for exercise_id, name in PROJECT.items():
        if chapter == name:
            title = name.split("_", 2)[-1].replace("_", " ")
            return (Exercise(exercise_id, chapter, title, "Engine"),)
    tree = ast.parse((STUBS / f"{chapter}.py").read_text(encoding="utf-8"))
    found = []
    for definition in tree.body:
        for node in ast.walk(definition):
            if isinstance(node, ast.FunctionDef) and (exercise_id := _raised_id(node)):
                name = node.name if node is definition else f"{definition.name}.{node.name}"
                found.append(Exercise(exercise_id, chapter, name, definition.name))
    return tuple(found)


def _raised_id(function: ast.FunctionDef) -> str | None:
    """ "ex04b" if the last statement of `function` is `raise NotImplementedError("ex04b")`."""
    # Written out by `ast`, which gives the same quotes and spacing for every file.
    match = re.fullmatch(r"raise NotImplementedError\('(ex\d\d[a-z])'\)", ast.unparse(function.body[-1]))
    return match.group(1) if match else None


def parse_target(text: str) -> Target:
    """Read "4", "04", "ch04", "ch04_block_table" or "ex04b"; "4b" is taken for "ex04b".

    Raises:
        CourseError: there is no such chapter or exercise; the message lists the existing ones.
    """
    present = chapters()
    match = re.fullmatch(r"(?:ch|ex)?(\d{1,2})([a-z]?)(_\w+)?(\.py)?", text.strip().lower())
    chapter = CHAPTERS.get(int(match.group(1))) if match else None
    if chapter in present:
        letter = match.group(2)
        if not letter:
            return Target(chapter, None)
        exercise_id = f"ex{int(match.group(1)):02d}{letter}"
        if any(exercise.id == exercise_id for exercise in exercises_of(chapter)):
            return Target(chapter, exercise_id)
    known = "; ".join(f"{stem}: {', '.join(e.id for e in exercises_of(stem))}" for stem in present)
    raise CourseError(f"there is no chapter or exercise {text!r}. There are: {known}.")

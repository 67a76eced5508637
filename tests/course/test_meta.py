"""The exercises themselves are tested: the four guarantees.

Stubs are up to date; the reference and every alternate pass; with stubs each test fails because nothing is
written yet; every mutant is caught by the test that it names. All of it in one subprocess, because what takes
the time is to import torch and hypothesis.
"""

import ast
import re
from collections import Counter
from dataclasses import asdict

import pytest

from minivllm.course import catalog, implementations, stubs
from minivllm.course.cases import cases_of
from minivllm.course.catalog import Target
from minivllm.course.run import RunOptions, run_process

MODES = ("reference", "stub", "alternates", "mutants")


@pytest.fixture(scope="module")
def run():
    """Every exercise test in all modes: (the tests there are, the records)."""
    targets = [Target(chapter, None) for chapter in catalog.chapters()]
    # A slow machine is no failure: these limits are for what never ends.
    outcome = run_process(",".join(MODES), targets, RunOptions(time_limit=300.0, run_limit=3600.0))
    assert not outcome.received.is_tampered and not outcome.is_timed_out and outcome.received.records, (
        outcome.output
    )
    cases = [asdict(case) for target in targets for case in cases_of(target)]
    return cases, outcome.received.records


def of_mode(rows, mode):
    """The rows of one mode."""
    return [row for row in rows if row["variant"].partition(":")[0] == mode.removesuffix("s")]


def others(records, status):
    """What did not go as it should: test and variant -> status and message."""
    return {
        f"{record['test']}[{record['variant']}]": (record["status"], record["exception"], record["message"])
        for record in records
        if record["status"] != status
    }


def test_regenerating_the_stubs_changes_nothing():
    """Would catch a stub edited by hand, and a solution whose docstring or signature students do not get."""
    assert stubs.stale_stubs(catalog.STUBS) == []


def test_a_stub_holds_no_answer():
    """Would catch a mark in the wrong place: all that is left of an exercise is docstring and raise."""
    for chapter in catalog.chapters():
        text = (catalog.STUBS / f"{chapter}.py").read_text()
        assert "SOLUTION" not in text
        tree = ast.parse(text)
        written = {exercise.name.split(".")[-1] for exercise in catalog.exercises_of(chapter)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in written:
                assert len(node.body) == 2, f"{chapter}: {node.name} is more than a docstring and a raise"
                assert ast.get_docstring(node), f"{chapter}: {node.name} says not what it has to do"


def test_a_changed_stub_would_be_noticed(tmp_path):
    """Negative control: the comparison sees a changed, a missing and a surplus file."""
    names = [path.name for path in sorted(catalog.STUBS.glob("ch*.py"))]
    for name in names[1:]:
        (tmp_path / name).write_text((catalog.STUBS / name).read_text())
    (tmp_path / names[-1]).write_text("# edited\n")
    (tmp_path / "ch99_new.py").write_text("")
    assert [path.name for path in stubs.stale_stubs(tmp_path)] == sorted({names[0], names[-1], "ch99_new.py"})


def test_the_reference_passes_everything(run):
    """Would catch an exercise that has no answer, and a test that did not run."""
    records = of_mode(run[1], "reference")
    assert others(records, "passed") == {}
    assert sorted(record["test"] for record in records) == sorted(case["test"] for case in run[0])


def test_every_exercise_has_tests_that_say_why(run):
    """Would catch an exercise without a test, a test without a reason, and tests that are not collected."""
    collected = run[0]
    exercises = {exercise.id for chapter in catalog.chapters() for exercise in catalog.exercises_of(chapter)}
    assert {test["exercise"] for test in collected} == exercises
    assert all(test["reason"] and test["hint"] and test["points"] > 0 for test in collected)
    names = [test["test"] for test in collected]
    assert len(names) == len(set(names)), "two tests of one name: a mutant could not say which one catches it"
    assert len(names) == sum(
        path.read_text().count("\ndef test_") for path in catalog.TESTS.glob("test_ch*.py")
    )


def test_with_stubs_each_test_fails_as_not_written(run):
    """Would catch a test that passes on an empty answer, or one whose failure has another cause."""
    records = of_mode(run[1], "stub")
    assert len(records) == len(run[0])
    assert others(records, "not written yet") == {}
    assert {record["exception"] for record in records} == {"NotImplementedError"}


def test_every_alternate_passes(run):
    """Would catch a test that rejects a right answer because it is not the author's."""
    records = of_mode(run[1], "alternates")
    tested = {record["variant"].partition(":")[2] for record in records}
    assert tested == set(implementations.variant_names("alternate"))
    assert others(records, "passed") == {}


def test_every_mutant_is_caught_by_the_test_it_names(run):
    """Would catch a test that has gone blind. A mutant that merely crashes proves nothing: its result is wrong."""
    records = of_mode(run[1], "mutants")
    tested = [record["variant"].partition(":")[2] for record in records]
    assert sorted(tested) == implementations.variant_names("mutant"), "a first line names no test"
    assert others(records, "wrong result") == {}


def test_every_exercise_has_three_mutants_and_an_alternate():
    """Would catch an exercise whose tests no mutant has tried to fool."""
    mutants, alternates = (implementations.variant_names(kind) for kind in ("mutant", "alternate"))
    for chapter in catalog.chapters():
        for exercise in catalog.exercises_of(chapter):
            assert sum(name.startswith(exercise.id) for name in mutants) >= 3, exercise
            assert sum(name.startswith(exercise.id) for name in alternates) >= 1, exercise


def test_the_pages_for_teachers_state_the_right_numbers(run):
    """Would catch a syllabus whose points are not those that `grade` gives, and a count of mutants gone stale."""
    points = Counter()
    for test in run[0]:
        points[test["exercise"][2:4]] += test["points"]
    pages = catalog.ROOT / "docs" / "instructor"
    weeks = re.findall(r"^\| \d \| .* \| (\d+) \|$", (pages / "syllabus.md").read_text(), re.MULTILINE)
    by_week = [points[one] for one in ("01", "02", "03")] + [
        points["04"] + points["05"],
        points["06"],
        points["11"],
    ]
    assert [int(number) for number in weeks] == by_week
    syllabus = (pages / "syllabus.md").read_text()
    assert f"{sum(by_week)} in all" in syllabus
    assert f"01 to 06 ({sum(by_week[:-1])} points)" in syllabus
    extra = {
        number: int(sum_) for number, sum_ in re.findall(r"^\| \+ (\d\d) \| .* \| (\d+) \|$", syllabus, re.M)
    }
    assert extra == {
        number: points[number] for number in ("07", "08", "09", "10", "12", "13", "14", "15", "16")
    }
    assert f"{sum(extra.values())} points together" in syllabus
    num_exercises = sum(len(catalog.exercises_of(chapter)) for chapter in catalog.chapters())
    counted = f"{num_exercises} exercises in {len(catalog.chapters())} chapters"
    assert counted in (pages / "index.md").read_text()
    num_mutants = len(implementations.variant_names("mutant"))
    assert f"{num_mutants} known wrong answers" in (pages / "grading.md").read_text()


def test_a_mutant_replaces_what_it_defines_and_nothing_else():
    """Would catch a mutant with a misspelt name: it would be the reference, and no test could catch it."""
    for kind in ("mutant", "alternate"):
        for name in implementations.variant_names(kind):
            exercise = next(
                each
                for chapter in catalog.chapters()
                for each in catalog.exercises_of(chapter)
                if name.startswith(each.id)
            )
            tree = ast.parse((implementations.VARIANTS[kind] / f"{name}.py").read_text())
            defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
            assert exercise.definition in defined, name
            assert ast.get_docstring(tree), f"{name} says not which bug it is"

"""The exercises themselves are tested: the four guarantees, one subprocess for each way to run them.

Stubs are up to date; the reference and every alternate pass; with stubs each test fails because nothing is
written yet; every mutant is caught by the test that it names.
"""

import ast
import json
import os
import subprocess
import sys

import pytest

from minivllm.course import catalog, implementations, stubs


def run(impl, folder):
    """All exercise tests against `impl`: (exit status, collected tests, records)."""
    log = folder / f"{impl}.jsonl"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(catalog.TESTS),
        f"--confcutdir={catalog.TESTS}",
        "--impl",
        impl,
    ]
    command += ["--grade", str(log), "-p", "no:cacheprovider", "-q", "--tb=line", "--time-limit=120"]
    done = subprocess.run(
        command, cwd=catalog.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    collected = next((line["collected"] for line in lines if "collected" in line), [])
    assert collected, done.stdout + done.stderr
    return done, collected, [line for line in lines if "status" in line]


def statuses(records):
    return {
        f"{record['test']}[{record['variant']}]": (record["status"], record["message"]) for record in records
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def reference(folder):
    return run("reference", folder)


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


def test_the_reference_passes_everything(reference):
    """Would catch an exercise that nobody can solve."""
    done, collected, records = reference
    assert {status for status, _ in statuses(records).values()} == {"passed"}, done.stdout
    assert len(records) == len(collected) and done.returncode == 0


def test_every_exercise_has_tests_that_say_why(reference):
    """Would catch an exercise without a test, a test without a reason, and tests that are not collected."""
    _, collected, _ = reference
    exercises = {exercise.id for chapter in catalog.chapters() for exercise in catalog.exercises_of(chapter)}
    assert {test["exercise"] for test in collected} == exercises
    assert all(test["reason"] and test["hint"] and test["points"] > 0 for test in collected)
    names = [test["test"] for test in collected]
    assert len(names) == len(set(names)), "two tests of one name: a mutant could not say which one catches it"
    defined = sum(path.read_text().count("\ndef test_") for path in catalog.TESTS.glob("test_*.py"))
    assert defined == len(names)


def test_with_stubs_each_test_fails_as_not_written(folder):
    """Would catch a test that passes on an empty answer, or one whose failure has another cause."""
    _, collected, records = run("stub", folder)
    assert len(records) == len(collected)
    wrong = {name: status for name, status in statuses(records).items() if status[0] != "not written yet"}
    assert wrong == {}
    assert {record["exception"] for record in records} == {"NotImplementedError"}


def test_every_alternate_passes(folder):
    """Would catch a test that rejects a right answer because it is not the author's."""
    done, _, records = run("alternates", folder)
    assert {record["variant"] for record in records} == set(implementations.variant_names("alternate"))
    wrong = {name: status for name, status in statuses(records).items() if status[0] != "passed"}
    assert wrong == {}, done.stdout


def test_every_mutant_is_caught_by_the_test_it_names(folder):
    """Would catch a test that has gone blind. A mutant that merely crashes proves nothing: the result is wrong."""
    _, _, records = run("mutants", folder)
    assert {record["variant"] for record in records} == set(implementations.variant_names("mutant"))
    assert len(records) == len(implementations.variant_names("mutant"))
    survived = {name: status for name, status in statuses(records).items() if status[0] != "wrong result"}
    assert survived == {}


def test_every_exercise_has_three_mutants_and_an_alternate():
    """Would catch an exercise whose tests nobody has tried to fool."""
    mutants, alternates = (implementations.variant_names(kind) for kind in ("mutant", "alternate"))
    for chapter in catalog.chapters():
        for exercise in catalog.exercises_of(chapter):
            assert sum(name.startswith(exercise.id) for name in mutants) >= 3, exercise
            assert sum(name.startswith(exercise.id) for name in alternates) >= 1, exercise


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

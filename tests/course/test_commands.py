"""The commands of the course: what a student and a teacher are told, and that no student is graded by the wrong code."""

import ast
import csv
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from minivllm.course import __main__ as cli
from minivllm.course import (
    catalog,
    doctor,
    export,
    formats,
    grading,
    problems,
    report,
    run,
    solutions_page,
    stubs,
)
from minivllm.course.catalog import CourseError, Target
from minivllm.course.grading import Submission
from minivllm.course.implementations import Implementation
from minivllm.course.private_copy import CourseFiles
from minivllm.course.problems import WHOLE_FILE
from minivllm.course.records import (
    NOT_WRITTEN,
    PASSED,
    PROCESS_ENDED,
    TAMPERED,
    TIME_LIMIT,
    WRONG,
    Receiver,
    Record,
)
from tests.exercises import conftest as exercises_conftest

FILE = "ch04_block_table.py"
STUB = (catalog.STUBS / FILE).read_text()
# What is graded here is ex03b: its tests need no torch.
GRADED = "ch03_naive_batching.py"
ANSWERS = {
    "right": """batches = [output_lengths[i : i + batch_size] for i in range(0, len(output_lengths), batch_size)]
    steps = sum(max(batch) for batch in batches)
    return steps, steps * batch_size - sum(output_lengths)""",
    "wrong": """batches = [output_lengths[i : i + batch_size] for i in range(0, len(output_lengths), batch_size)]
    steps = sum(max(batch) for batch in batches)
    return steps, sum(max(batch) * len(batch) for batch in batches) - sum(output_lengths)""",
    "crashing": "import os; os._exit(0)",
    "endless": "while True: pass",
    "deaf": "while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "cheating": "from minivllm.baselines import StaticBatchScheduler; return 0, 0",
}


def with_answer(answer):
    """The stub of chapter 3 with ex03b filled in."""
    stub = (catalog.STUBS / GRADED).read_text()
    return stub.replace('raise NotImplementedError("ex03b")', ANSWERS[answer])


def write(folder, text, file=FILE):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text)
    return folder


def record(exercise="ex04b", test="test_x", points=2, status=WRONG, **fields):
    return Record(test, exercise, points, status, **fields)


# -- naming exercises -------------------------------------------------------------------------------


def test_chapters_and_exercises_are_found_by_any_name_one_would_type():
    """Would catch a command that wants one spelling and does not say which."""
    for text in ("4", "04", "ch04", "CH04", "ch04_block_table", "ch04_block_table.py"):
        assert catalog.parse_target(text) == Target("ch04_block_table", None), text
    assert catalog.parse_target("ex04b") == catalog.parse_target("4b") == Target("ch04_block_table", "ex04b")
    for text in ("33", "ex04z", "block_table", "", "123"):
        with pytest.raises(CourseError, match="ch04_block_table: ex04a, ex04b, ex04c"):
            catalog.parse_target(text)


def test_a_wrong_name_is_an_error_of_its_own_on_the_command_line(capsys):
    """Would catch a traceback where a sentence belongs."""
    assert cli.main(["check", "33"]) == 2
    assert "there is no chapter or exercise '33'" in capsys.readouterr().err


# -- stubs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "# BEGIN SOLUTION ex01a\n",
        "# END SOLUTION\n",
        "# BEGIN SOLUTION ex01a\n# BEGIN SOLUTION ex01b\n# END SOLUTION\n",
    ],
)
def test_a_mark_without_its_partner_is_refused(text):
    """Would catch a missing mark, with which half a solution would be handed out."""
    with pytest.raises(ValueError, match=r"without its partner|has no"):
        stubs.make_stub(text)


def test_reset_restores_one_exercise_and_keeps_the_others(tmp_path):
    """Would catch a reset that takes a student's other answers with it, or keeps no copy, or buries it."""
    text = STUB.replace('NotImplementedError("ex04a")', "ValueError").replace(
        'raise NotImplementedError("ex04c")', "pass  # mine"
    )
    write(tmp_path, text)
    backup = stubs.reset(Target("ch04_block_table", "ex04a"), tmp_path)
    assert (tmp_path / FILE).read_text() == STUB.replace('raise NotImplementedError("ex04c")', "pass  # mine")
    assert backup.read_text() == text
    second = stubs.reset(Target("ch04_block_table", None), tmp_path)
    assert (tmp_path / FILE).read_text() == STUB
    assert not stubs.reset(Target("ch04_block_table", None), tmp_path).exists(), "nothing had to change"
    assert backup.read_text() == text and "# mine" in second.read_text()
    backup.unlink()
    kept = second.read_text()
    (tmp_path / FILE).write_text("something new\n")
    assert stubs.reset(Target("ch04_block_table", None), tmp_path) == backup, "the first number that is free"
    assert second.read_text() == kept


def test_reset_of_one_exercise_in_a_broken_file_says_what_to_do(tmp_path):
    """Would catch a file that is overwritten although it could not be read."""
    for text, message in [
        ("def f(:\n", "syntax error in line 1"),
        ("x = 1\n", "no longer defines blocks_needed"),
    ]:
        write(tmp_path, text)
        with pytest.raises(CourseError, match=message) as error:
            stubs.reset(Target("ch04_block_table", "ex04a"), tmp_path)
        assert "reset 04" in str(error.value) and (tmp_path / FILE).read_text() == text


def test_regenerating_leaves_a_begun_file_alone(tmp_path, monkeypatch):
    """Would catch `stubs` overwriting a student's answers; an untouched file does follow the solutions."""
    student, pristine = tmp_path / "student", tmp_path / "stubs"
    monkeypatch.setattr(stubs, "STUDENT", student)
    monkeypatch.setattr(stubs, "STUBS", pristine)
    monkeypatch.setattr(stubs, "all_stubs", lambda: {FILE: STUB + "# new\n"})
    write(pristine, STUB)
    write(student, STUB)
    assert stubs.write_stubs() == [student / FILE, pristine / FILE]
    write(pristine, STUB)
    write(student, STUB + "# mine\n")
    assert stubs.write_stubs() == [pristine / FILE]
    assert (student / FILE).read_text() == STUB + "# mine\n"


# -- whose code -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "kind"),
    [
        ("", WHOLE_FILE, "empty file"),
        ("# only a comment\nx = 1\n", WHOLE_FILE, "empty file"),
        ("def blocks_needed(num_tokens, block_size)\n    return 1\n", WHOLE_FILE, "syntax error"),
        (
            "from tests.exercises.solutions.ch04_block_table import *\ndef f(): pass\n",
            WHOLE_FILE,
            "uses the reference",
        ),
        ("import minivllm.block_table\ndef f(): pass\n", WHOLE_FILE, "uses the reference"),
        ("def free():\n    from minivllm.block_table import cdiv\n", "free", "uses the reference"),
        ("def free():\n    import importlib\n", "free", "uses the reference"),
        ("def free():\n    exec('import minivllm')\n", "free", "uses the reference"),
        ("def free():\n    import sys\n    sys.modules['x']\n", "free", "uses the reference"),
        ("def free():\n    import gc\n", "free", "uses the reference"),
        ("def free():\n    import subprocess\n", "free", "uses the reference"),
        ("def free():\n    from multiprocessing import Process\n", "free", "uses the reference"),
        ("def free():\n    import builtins as b\n", "free", "uses the reference"),
        ("def free():\n    compile('1', 'x', 'exec')\n", "free", "uses the reference"),
        ("x = " + "-" * 3000 + "1\n", WHOLE_FILE, "syntax error"),
        ("def helper():\n    from minivllm.block_table import cdiv\n", WHOLE_FILE, "uses the reference"),
        (
            "class C:\n    def f(self):\n        __import__('minivllm.block_table')\n",
            WHOLE_FILE,
            "uses the reference",
        ),
    ],
)
def test_what_cannot_be_graded_is_told_as_what_it_is(tmp_path, text, where, kind):
    """Would catch an empty file that passes, and a call of the very thing to be written, by a helper too."""
    found = problems.find_problems(write(tmp_path, text) / FILE)
    assert {name: problem.kind for name, problem in found.items()} == {where: kind}


@pytest.mark.parametrize(
    ("file", "text", "where"),
    [
        ("ch01_llama_forward", "def rms_norm(x, weight, eps): return F.rms_norm(x, (4,))\n", "rms_norm"),
        ("ch01_llama_forward", "def rms_norm(x, weight, eps): return nn.RMSNorm(4)(x)\n", "rms_norm"),
        ("ch01_llama_forward", "def grouped_attention(q, k, v): return F.{}(q, k, v)\n", "grouped_attention"),
        ("ch02_kv_cache", "def decode_step(q, k, v): return F.{}(q, k, v, mask)\n", "decode_step"),
        ("ch02_kv_cache", "def decode_step(q, k, v): return getattr(F, '{}')(q, k, v)\n", "decode_step"),
        ("ch02_kv_cache", "def helper(q, k, v): return F.{}(q, k, v)\n", WHOLE_FILE),
        ("ch02_kv_cache", "from torch.nn.functional import {} as f\ndef g(): pass\n", WHOLE_FILE),
    ],
)
def test_a_call_of_what_is_to_be_written_costs_the_exercise(tmp_path, file, text, where):
    """Would catch full points for attention that is PyTorch's attention: the text of the exercise forbids it."""
    path = write(tmp_path, text.replace("{}", "scaled_dot_product_attention"), f"{file}.py") / f"{file}.py"
    found = problems.find_problems(path)
    assert {name: problem.kind for name, problem in found.items()} == {where: "uses what is to be written"}
    stub = ast.parse((catalog.STUBS / f"{file}.py").read_text())
    texts = [ast.get_docstring(node) for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert sum("it is what you are writing" in text for text in texts) == {"ch01": 2, "ch02": 1}[file[:4]]


def test_a_function_of_ones_own_may_have_any_name(tmp_path):
    """Negative control of the test above: a recursive call, a comment, and a name that another exercise asks for."""
    text = "# not scaled_dot_product_attention\ndef rms_norm(x):\n    'Not F.rms_norm.'\n    return rms_norm(x)\n"
    assert (
        problems.find_problems(write(tmp_path, text, "ch01_llama_forward.py") / "ch01_llama_forward.py") == {}
    )
    assert problems.find_problems(write(tmp_path, text) / FILE) == {}


def test_what_the_stub_imports_may_be_imported(tmp_path):
    """Negative control: an untouched stub, and one with imports of the standard library, have no problem."""
    for chapter in catalog.chapters():
        assert problems.find_problems(catalog.STUBS / f"{chapter}.py") == {}
    assert problems.find_problems(write(tmp_path, "import math\ndef f(): pass\n") / FILE) == {}


def test_a_missing_file_is_missing_and_not_taken_from_elsewhere(tmp_path):
    """Would catch a submission without a file that is graded by the shipped solution."""
    with pytest.raises(problems.SubmissionError, match=r"there is no ch04_block_table\.py"):
        Implementation.from_option(str(tmp_path)).load("ch04_block_table")


def test_an_implementation_that_does_not_exist_is_an_error():
    """Would catch a typo in --impl that tests something else."""
    for option in ("refrence", "mutant:ex04a_none", "alternate:x"):
        with pytest.raises(ValueError, match=r"no such folder|there is no"):
            Implementation.from_option(option)


def test_a_graded_process_cannot_open_the_solutions(tmp_path):
    """Would catch a submission that reads its answer from the solutions folder; other files stay readable."""
    solution, stub = catalog.SOLUTIONS / FILE, catalog.STUBS / FILE
    for way in (
        f"open({str(solution)!r})",
        f"open({os.fsencode(solution)!r})",
        f"os.open({str(solution)!r}, 0)",
        f"os.chdir({str(solution.parent)!r}); open({FILE!r})",
        f"os.open({FILE!r}, 0, dir_fd=os.open({str(solution.parent)!r}, 0))",
        f"os.link({str(solution)!r}, {str(tmp_path / 'x.py')!r})",
        f"os.symlink({str(solution)!r}, {str(tmp_path / 'y.py')!r}); open({str(tmp_path / 'y.py')!r})",
    ):
        code = (
            "import os\n"
            "from minivllm.course.implementations import ROOT, guard_course\n"
            f"guard_course(ROOT); open({str(stub)!r}).read()\n"
            f"try: {way}\n"
            "except PermissionError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=catalog.ROOT, capture_output=True, text=True)
        assert "holds a solution" in done.stdout, done.stdout + done.stderr


def pytest_exercises(*arguments):
    """Run pytest as a person would, in a process of its own: (exit status, output)."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=catalog.ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_plain_run_of_the_exercises_is_green_and_says_whose_code_it_was():
    """Would catch a fresh clone that is red, and a green run of the reference taken for a solved exercise."""
    path = str(catalog.TESTS / "test_ch04_block_table.py")
    code, output = pytest_exercises(path, "-k", "just_hold")
    assert code == 0 and "1 passed" in output and "The code tested was the reference" in output, output
    # (Without the conftest of the engine's tests, which imports torch.)
    here = f"--confcutdir={catalog.TESTS}"
    code, output = pytest_exercises(here, path, "-k", "just_hold", "--impl", "stub")
    assert code == 1 and "was the reference" not in output, output


def test_all_tests_together_leave_the_exercises_out():
    """Would catch a student's half-solved file that turns the whole repository red."""
    ignore = exercises_conftest.pytest_ignore_collect
    for impl, expected in ((None, True), ("student", None)):
        config = SimpleNamespace(getoption=lambda name, default=None, impl=impl: impl)
        assert ignore(catalog.TESTS / "test_ch04_block_table.py", config) is expected
    for argument, expected in (("tests", False), (f"{catalog.TESTS}/test_x.py::test_y", True)):
        assert exercises_conftest.asks_for_exercises(SimpleNamespace(args=[argument])) is expected


# -- records and reports ----------------------------------------------------------------------------


def test_a_run_that_breaks_off_loses_no_test():
    """Would catch tests that vanish from a grade because the process was gone before their turn."""
    cases = [run.Case(f"test_{i}", "ex04a", 1, "Why.", "A hint.", ()) for i in "abc"]
    received = Receiver(b"", [{"test": "test_a", "status": PASSED}], running="test_b")
    for timed_out, status in ((False, PROCESS_ENDED), (True, TIME_LIMIT)):
        records = run.complete(cases, run.Outcome(received, timed_out, ""))
        assert [(r.test, r.status) for r in records] == [
            ("test_a", PASSED),
            ("test_b", status),
            ("test_c", status),
        ]
        assert "not run" in records[2].message and "not run" not in records[1].message
        # A mere sys.exit does not end the process: it is an error in the code.
        assert timed_out or "os._exit" in records[1].message
        assert [(r.reason, r.hint, r.points) for r in records] == [("Why.", "A hint.", 1)] * 3


def test_a_test_that_is_reported_twice_or_does_not_exist_spoils_the_run():
    """Would catch a run that gives more points than there are; negative control: each test once."""
    cases = [run.Case("test_a", "ex04a", 1, "Why.", "A hint.", ())]
    for names, status in ((["test_a"], PASSED), (["test_a"] * 2, TAMPERED), (["test_a", "test_b"], TAMPERED)):
        received = Receiver(b"", [{"test": name, "status": PASSED} for name in names])
        assert [r.status for r in run.complete(cases, run.Outcome(received, False, ""))] == [status]


def test_a_run_without_tests_is_an_error(monkeypatch):
    """Would catch "no tests ran" taken for "all tests passed"."""
    nothing = run.Outcome(Receiver(b""), False, "ImportError: no torch")
    monkeypatch.setattr(run, "run_process", lambda *arguments: nothing)
    with pytest.raises(CourseError, match=r"no test ran(.|\n)*no torch"):
        run.run_tests("student", [Target("ch04_block_table", None)])


def test_the_report_shows_one_failure_with_reason_hint_and_place(tmp_path):
    """Would catch a page of failures, and a message without what was expected and what came."""
    records = [
        record("ex04a", "test_done", 1, PASSED),
        record(
            "ex04b",
            "test_first",
            2,
            message="f(3)\n  expected  1\n  got       2",
            reason="A reason.",
            hint="A hint.",
        ),
        record("ex04b", "test_second", 2, reason="Not shown.", where="ch04.py, line 3: x"),
        record("ex04c", "test_third", 1, NOT_WRITTEN),
    ]
    text = report.describe("ch04_block_table", records, write(tmp_path, STUB) / FILE)
    assert "saved 0 seconds ago" in text or "saved 1 second ago" in text
    for line in ("1 of  1 points   done", "2 of 2 tests fail", "0 of  1 points   not written yet", "Next: ex04b, test_first",
                 "A reason.", "A hint.", "expected  1", "got       2", "1 more of ex04b fails"):  # fmt: skip
        assert line in text, line
    assert "Not shown" not in text


def test_show_prints_what_the_real_model_wrote_or_what_is_missing(tmp_path):
    """Would catch a student whose block table generates text that is not shown."""
    passed = record(status=PASSED, printed="The capital of France is -> Paris.\n")
    text = report.real_text([passed], tmp_path / FILE)
    assert "With your ex04b in the engine" in text and "The capital of France is -> Paris." in text
    text = report.real_text([passed, record("ex04c", status=NOT_WRITTEN)], tmp_path / FILE)
    assert "ex04c is not written yet" in text and "Paris" not in text


def test_show_runs_only_the_tests_inside_the_engine():
    """Would catch an exercise that `show` has nothing to show for, and one that is shown outside the engine."""
    code, output = pytest_exercises(str(catalog.TESTS), "--impl", "reference", "--real", "--collect-only")
    assert code == 0, output
    shown = [line.rpartition("::")[2] for line in output.splitlines() if "::" in line]
    assert "test_the_block_table_generates_text" in shown
    assert len(shown) < 30 and "test_the_blocks_just_hold_the_tokens" not in shown


def test_the_report_shows_what_the_code_printed(tmp_path):
    """Would catch a student who looks for a mistake with `print` and never sees it; only the end, if it is long."""
    printed = "".join(f"round {i}\n" for i in range(100))
    text = report.describe("ch04_block_table", [record(printed=printed)], write(tmp_path, STUB) / FILE)
    assert (
        "printed" in text and "    round 99" in text and "round 91" not in text and text.count("round") == 8
    )


def test_an_exercise_that_needs_another_one_says_so():
    """Would catch "NotImplementedError: ex04a" in the report on ex04b, which reads like a mistake in ex04b."""
    status, message, _ = exercises_conftest.describe(NotImplementedError("ex04a"), "ex04b")
    assert (status, message) == ("error in the code", "your ex04b calls ex04a, which is not written yet.")
    assert exercises_conftest.describe(NotImplementedError("ex04b"), "ex04b")[0] == NOT_WRITTEN


def test_the_report_tells_a_problem_of_the_file_once(tmp_path):
    """Would catch a syntax error repeated for every test, with "wrong result" beside it."""
    problem = {"status": "syntax error", "message": "ch04 is not valid Python, line 3: invalid syntax"}
    text = report.describe(
        "ch04_block_table", [record(**problem), record("ex04a", **problem)], tmp_path / FILE
    )
    assert text.count("not valid Python") == 1 and "which is not there" in text


# -- grading ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Folders of made-up submissions, graded on ex03b; those that never end apart, with a limit of a second."""
    folder = tmp_path_factory.mktemp("submissions")
    write(folder / "wrong" / "notebooks" / "exercises", with_answer("wrong"), GRADED)
    write(folder / "empty", "", GRADED)
    for name in ("right", "crashing", "cheating"):
        write(folder / name, with_answer(name), GRADED)
    write(folder / "copy", "# mine\n" + (catalog.SOLUTIONS / GRADED).read_text(), GRADED)
    (folder / "nothing").mkdir()
    slow = tmp_path_factory.mktemp("slow-submissions")
    for name in ("endless", "deaf"):
        write(slow / name, with_answer(name), GRADED)
    (folder / "right" / "conftest.py").write_text(
        "raise SystemExit('a submission must not bring its own tests')"
    )
    target = [catalog.parse_target("ex03b")]
    submissions = grading.grade(folder, target, run.RunOptions(time_limit=120.0))
    submissions += grading.grade(slow, target, run.RunOptions(time_limit=1.0))
    return {each.name: each for each in submissions}


def test_each_submission_gets_what_it_deserves(graded):
    """Would catch a grade that comes from the reference, or from the submission before."""
    scores = {name: submission.score for name, submission in graded.items()}
    most = graded["right"].max_score
    assert scores.pop("right") == most > scores.pop("wrong") > 0
    assert set(scores.values()) == {0.0} and len(scores) == 7
    assert all(submission.max_score == most for submission in graded.values())


def test_each_submission_is_told_what_is_wrong_with_it(graded):
    """Would catch an endless loop, a crash or an empty file reported as a wrong result."""
    statuses = {name: {r.status for r in submission.records} for name, submission in graded.items()}
    assert statuses["right"] == {PASSED}
    assert statuses["wrong"] == {PASSED, WRONG}
    assert statuses["empty"] == {"empty file"}
    assert statuses["crashing"] == {PROCESS_ENDED}
    assert statuses["endless"] == {TIME_LIMIT}
    assert TIME_LIMIT in statuses["deaf"] <= {TIME_LIMIT, PROCESS_ENDED}
    assert statuses["cheating"] == statuses["copy"] == {"uses the reference"}
    assert statuses["nothing"] == {"missing file"}


def test_every_format_tells_the_same_of_a_folder_of_submissions(graded, tmp_path):
    """Would catch a format that loses a crashed or endless submission, or the word for what happened to it."""
    five = [graded[name] for name in ("right", "wrong", "empty", "crashing", "endless")]
    problems = {"empty": "empty file", "crashing": "ended the process", "endless": "time limit"}
    for name in formats.WRITERS:
        out = tmp_path / name
        formats.require_place(name, len(five), out)
        formats.write(name, five, out, len(five))
    rows = {row["submission"]: row for row in csv.DictReader((tmp_path / "csv").open())}
    everything = {each["submission"]: each for each in json.loads((tmp_path / "json").read_text())}
    suites = {each.get("name"): each for each in ElementTree.parse(tmp_path / "junit").iter("testsuite")}
    for submission in five:
        name, score = submission.name, submission.score
        results = json.loads((tmp_path / "gradescope" / f"{name}.json").read_text())
        assert float(rows[name]["score"]) == everything[name]["score"] == results["score"] == score, name
        assert len(suites[name]) == len(results["tests"]) == len(submission.records), name
        assert len(suites[name].findall("testcase/failure")) == int(suites[name].get("failures")), name
        problem = problems.get(name, "")
        assert problem in rows[name]["problems"] and bool(problem) == bool(rows[name]["problems"]), name
        assert problem in " ".join(test["output"] for test in results["tests"]), name


def test_a_place_for_the_grades_is_asked_for_before_the_grading(tmp_path, monkeypatch, capsys):
    """Would catch minutes of grading thrown away because there is nowhere to put the result."""
    monkeypatch.setattr(
        grading, "grade", lambda *arguments, **options: pytest.fail("graded before it was asked")
    )
    for name in ("ada", "bob"):
        write(tmp_path / name, STUB)
    for options in (["--format", "gradescope"], ["--out", str(tmp_path / "none" / "grades.csv")]):
        assert cli.main(["grade", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert "give a folder" in error and "there is no folder" in error


@pytest.mark.parametrize("form", sorted(formats.WRITERS))
def test_an_interrupt_costs_only_the_submission_that_was_being_graded(tmp_path, monkeypatch, form):
    """Would catch the grades of 39 students lost with a Ctrl-C during the last one."""
    for name in ("ada", "bob", "eve"):
        write(tmp_path / "class" / name, STUB)
    results = iter([[record(status=PASSED)], [record(status=WRONG)]])

    def grade_one(*arguments):
        try:
            return next(results)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(grading, "grade_one", grade_one)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["grade", str(tmp_path / "class"), "--format", form, "--out", str(tmp_path / "out")])
    if form == "gradescope":
        written = {path.stem: json.loads(path.read_text())["score"] for path in (tmp_path / "out").iterdir()}
        assert written == {"ada": 2, "bob": 0}
    else:
        text = (tmp_path / "out").read_text()
        assert "ada" in text and "bob" in text and "eve" not in text


def test_the_shipped_solutions_are_never_graded(tmp_path, monkeypatch):
    """Would catch a grade for the solutions folder, and points for a copy of a solution with other comments."""
    for folder in (catalog.SOLUTIONS, catalog.TESTS, catalog.STUBS):
        with pytest.raises(CourseError, match="not a submission"):
            grading.grade(folder, [], run.RunOptions())
    digests = tmp_path / "digests.txt"
    digests.write_bytes(CourseFiles.read().files[problems.DIGESTS.relative_to(catalog.ROOT)][0])
    monkeypatch.setattr(problems, "DIGESTS", digests)
    solution = (catalog.SOLUTIONS / FILE).read_text()
    without_marks = [line for line in solution.splitlines() if " SOLUTION" not in line]
    for text in (solution, "# mine\n" + "\n".join(without_marks)):
        problem = problems.find_problems(write(tmp_path, text) / FILE)[WHOLE_FILE]
        assert problem.kind == "uses the reference" and "copy of the solution" in str(problem)
    assert problems.find_problems(write(tmp_path, STUB) / FILE) == {}


def test_a_folder_without_submissions_says_what_was_expected(tmp_path):
    """Would catch an empty table of grades because the files have other names."""
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "block_table.py").write_text(STUB)
    with pytest.raises(CourseError, match=r"NAME/chNN_topic\.py.*ch04_block_table\.py"):
        grading.find_submissions(tmp_path)
    with pytest.raises(CourseError, match="there is no folder"):
        grading.find_submissions(tmp_path / "none")


def test_one_exercise_that_ends_the_process_does_not_cost_the_others():
    """Would catch a crash in ex04a that takes the points of ex04b; what did run is not run again."""
    calls = []

    def run_alone(targets):
        calls.append(targets)
        return [record("ex04b", "test_b", 2, PASSED)]

    broken = [
        record("ex04a", "test_a", 1, PASSED),
        record("ex04b", "test_b", 2, PROCESS_ENDED),
        record("ex04c", "test_c", 1, WRONG),
    ]
    got = grading.run_again_alone(broken, run_alone)
    assert calls == [[Target("ch04_block_table", "ex04b")]]
    assert [(r.exercise, r.status) for r in got] == [("ex04a", PASSED), ("ex04b", PASSED), ("ex04c", WRONG)]


SUBMISSIONS = [
    Submission("ada", (record("ex04a", "test_a", 1, PASSED, reason="Why."), record("ex04b", "test_b", 2.5, hint="A hint."))),
    Submission("bob", (record("ex04a", "test_a", 1, "empty file", message="\x00 <&>"), record("ex04b", "test_b", 2.5, PASSED))),
]  # fmt: skip


def test_csv_has_one_line_a_submission_and_one_column_an_exercise():
    """Would catch columns that shift when a submission lacks something."""
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(SUBMISSIONS))))
    assert rows[0] == {
        "submission": "ada",
        "score": "1",
        "max_score": "3.5",
        "ex04a": "1",
        "ex04b": "0",
        "problems": "",
    }
    assert rows[1]["score"] == "2.5" and rows[1]["problems"] == "ex04a: empty file"


SHORTEST_FIRST = """from collections import deque

from minivllm.scheduler import Scheduler


class MyScheduler(Scheduler):
    def schedule(self):
        self.waiting = deque(sorted(self.waiting, key=lambda group: group.max_num_tokens - len(group.seqs[0])))
        return super().schedule()
"""


def test_a_contest_of_the_capstone_has_a_winner(tmp_path):
    """Would catch two schedulers of 12 points with nothing in any output that tells the better one."""
    chapter = "ch11_together"
    least_slack = (catalog.TESTS / "alternates" / "ex11a_least_slack.py").read_text()
    for name, text in (("sjf", SHORTEST_FIRST), ("slack", least_slack), ("stub", None)):
        write(tmp_path / name, text or (catalog.STUBS / f"{chapter}.py").read_text(), f"{chapter}.py")
    submissions = grading.grade(tmp_path, [catalog.parse_target("ex11a")], run.RunOptions(seed=7))
    assert [each.score for each in submissions] == [12, 12, 0]
    rows = list(csv.DictReader(io.StringIO(formats.to_csv(submissions))))
    goodput = [row["ex11a goodput"] for row in rows]
    assert 0.8 < float(goodput[0]) < 1 and 0.8 < float(goodput[1]) < 1 and goodput[0] != goodput[1]
    assert goodput[2] == "", "nothing was measured"
    tests = json.loads(formats.to_json(submissions))[1]["tests"]
    stages = [each["measured"]["goodput"] for each in tests if each["test"].startswith("test_stage")]
    assert f"{sum(stages) / 2:.4f}" == goodput[1] and {each["status"] for each in tests} == {PASSED}
    text = report.describe(chapter, list(submissions[1].records), tmp_path / "slack" / f"{chapter}.py")
    assert f"12 of 12 points   done, goodput {sum(stages) / 2:.3f}" in text


def test_what_a_failed_test_measured_is_shown_too():
    """Would catch a student just below a stage who does not see how far below."""
    records = [record("ex11a", "test_stage_1", 4, WRONG, measured={"goodput": 0.7})]
    assert "goodput 0.700" in report.describe("ch11_together", records, catalog.STUBS / "ch11_together.py")


def test_gradescope_gets_its_fields_and_one_file_a_submission(tmp_path):
    """Would catch a results.json that Gradescope refuses, or two students in one file."""
    data = json.loads(formats.to_gradescope(SUBMISSIONS[:1]))
    assert data["score"] == 1.0 and data["stdout_visibility"] == "hidden"
    assert [(t["score"], t["max_score"], t["status"]) for t in data["tests"]] == [
        (1, 1, "passed"),
        (0.0, 2.5, "failed"),
    ]
    assert set(data["tests"][0]) == {"name", "number", "score", "max_score", "status", "output", "visibility"}
    assert "A hint." in data["tests"][1]["output"]
    formats.write("gradescope", SUBMISSIONS, tmp_path / "results", 2)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["ada.json", "bob.json"]
    for out in (None, tmp_path / "results.json"):
        with pytest.raises(CourseError, match="one file per submission"):
            formats.require_place("gradescope", 2, out)


def test_junit_and_json_hold_every_test(capsys):
    """Would catch XML that no reader accepts because a student printed a control character."""
    suites = ElementTree.fromstring(formats.to_junit(SUBMISSIONS)).findall("testsuite")
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in suites] == [
        ("ada", "2", "1"),
        ("bob", "2", "1"),
    ]
    assert "<&>" in suites[1].find("testcase/failure").text
    formats.write("json", SUBMISSIONS, None, 2)
    data = json.loads(capsys.readouterr().out)
    assert [[test["score"] for test in each["tests"]] for each in data] == [[1, 0.0], [0.0, 2.5]]


# -- for teachers, and in notebooks -----------------------------------------------------------------


def test_the_copy_for_students_holds_stubs_and_no_solution(tmp_path):
    """Would catch a solution, an alternate or a mutant handed out with the exercises, or a copy that does not run."""
    message = export.export_student(tmp_path / "copy")  # runs all exercise tests of the copy
    assert re.search(r"Its [1-9]\d+ exercise tests fail, as they should", message)
    leftovers = [
        path for path in (tmp_path / "copy").rglob("*") if path.name in (".hypothesis", "__pycache__")
    ]
    assert leftovers == []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/exercises"],
        cwd=tmp_path / "copy",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4 and "say whose code to test: --impl student" in done.stderr
    names = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*")}
    assert f"notebooks/exercises/{FILE}" in names and f"tests/exercises/stubs/{FILE}" in names
    hidden = (
        "tests/exercises/solutions",
        "tests/exercises/alternates",
        "tests/exercises/mutants",
        "docs/instructor",
    )
    assert not [name for name in names if name.startswith((*hidden, "tests/course"))]
    assert export.dead_names(tmp_path / "copy") == []
    assert "BEGIN SOLUTION" not in (tmp_path / "copy" / "notebooks" / "exercises" / FILE).read_text()
    with pytest.raises(CourseError, match="not empty"):
        export.export_student(tmp_path / "copy")


def test_what_is_for_teachers_is_cut_and_what_still_names_it_is_found(tmp_path):
    """Would catch links to docs/instructor in the copy for students, with which its `make docs` and `make test` fail."""
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "index.md"
    (tmp_path / "README.md").write_text(
        "Hand it in.<!-- teacher --> See\n`docs/instructor/`.<!-- end -->\n\nA word.<!-- teacher --> x<!-- end -->\n"
    )
    page.write_text("One.\n\n<!-- teacher -->\n[All](instructor/index.md)\n<!-- end -->\nTwo.\n")
    assert export.dead_names(tmp_path)
    export.cut_for_teachers(tmp_path)
    assert (tmp_path / "README.md").read_text() == "Hand it in.\n\nA word.\n"
    assert page.read_text() == "One.\n\nTwo.\n" and export.dead_names(tmp_path) == []
    page.write_text("One.\n[All](instructor/index.md)\n<!-- end -->\n")
    assert export.dead_names(tmp_path) == [
        "docs/index.md, line 2: ](instructor",
        "docs/index.md, line 3: <!-- end -->",
    ]
    with pytest.raises(CourseError, match=r"<!-- teacher --> and(.|\n)*docs/index\.md, line 2"):
        export.try_out(tmp_path)


def test_the_solutions_page_is_up_to_date_and_folds_every_exercise():
    """Would catch a page that was not made again after a solution changed."""
    assert solutions_page.stale() == []
    page = solutions_page.PAGE.read_text()
    exercises = [exercise for chapter in catalog.chapters() for exercise in catalog.exercises_of(chapter)]
    assert page.count("<details>") == page.count("</details>") == len(exercises)
    assert "SOLUTION" not in page


def test_the_built_site_has_no_page_of_solutions():
    """Would catch answers that students find with the search of the site; the other pages for teachers are there."""
    settings = (catalog.ROOT / "docs" / "conf.py").read_text()
    (excluded,) = re.findall(r"^exclude_patterns = (\[.*\])$", settings, re.MULTILINE)
    page = solutions_page.PAGE.relative_to(catalog.ROOT / "docs").as_posix()
    assert page in ast.literal_eval(excluded)
    toctree = re.search(
        r"```\{toctree\}(.*?)```", solutions_page.PAGE.with_name("index.md").read_text(), re.DOTALL
    )
    assert "grading" in toctree[1] and "solutions" not in toctree[1]


def test_the_magic_is_registered_and_says_what_is_wrong(capsys):
    """Would catch %load_ext that loads nothing, and a traceback in a notebook."""
    import minivllm.course

    magics = {}
    shell = SimpleNamespace(
        register_magic_function=lambda function, kind, name: magics.update({name: function})
    )
    minivllm.course.load_ipython_extension(shell)
    magics["check"]("ex99a")
    assert "there is no chapter or exercise 'ex99a'" in capsys.readouterr().out


# -- the doctor -------------------------------------------------------------------------------------


def test_the_doctor_asks_for_what_the_notebooks_need(monkeypatch, capsys):
    """Would catch "All fine." on a machine where no notebook opens, and advice that installs half of it."""
    version = importlib.metadata.version

    def missing(package):
        if package in ("jupyterlab", "ipywidgets", "matplotlib", "ipython", "triton"):
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    monkeypatch.setattr(doctor, "_generate", lambda: (True, "the engine writes", ""))
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert not doctor.report()
    printed = capsys.readouterr().out
    for package in ("jupyterlab", "ipywidgets", "matplotlib", "ipython", "triton"):
        assert f'NO  {package} is not installed\n      -> pip install -e ".[test,lab]"' in printed
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    doctor.report()
    assert "triton" not in capsys.readouterr().out


def test_the_doctor_says_whether_the_weights_are_here(monkeypatch, tmp_path):
    """Would catch a class of forty that fetches 93 MB at once; weights that are not here yet are no fault."""
    monkeypatch.setenv("MINIVLLM_CACHE", str(tmp_path))
    fine, finding, _ = doctor._find_weights()
    assert fine and "not here yet" in finding and "python -m minivllm demo" in finding
    (tmp_path / "smollm2-135m-instruct-1").mkdir()
    fine, finding, _ = doctor._find_weights()
    assert fine and finding == f"weights of SmolLM2: in {tmp_path / 'smollm2-135m-instruct-1'}"


def test_chapter_10_without_triton_says_what_it_needs(tmp_path):
    """Would catch an import error without advice on a machine that has no Triton, as macOS."""
    text = "raise ModuleNotFoundError('No module named triton', name='{}')\ndef f(): pass\n"
    for module, said in (("triton", True), ("numpy", False)):
        write(tmp_path, text.format(module), "ch10_triton_kernel.py")
        with pytest.raises(problems.SubmissionError) as caught:
            Implementation(tmp_path).load("ch10_triton_kernel")
        assert ("Chapter 10 needs Triton, that is Linux" in str(caught.value)) is said


def test_without_process_groups_nothing_is_checked_and_all_say_what_to_use(monkeypatch, capsys):
    """Would catch Windows, where a check ended in an AttributeError and the doctor said "All fine."."""
    monkeypatch.setattr(doctor, "_generate", lambda: (True, "the engine writes", ""))
    doctor.report()
    assert "ok  exercises can be checked here" in capsys.readouterr().out
    monkeypatch.delattr(os, "killpg")
    assert cli.main(["check", "ex03b"]) == 2
    assert "Use WSL 2 or Linux; Windows has no process groups" in capsys.readouterr().err
    assert not doctor.report()
    printed = capsys.readouterr().out
    assert "NO  exercises cannot be checked here\n      -> Use WSL 2 or Linux; Windows has no" in printed
    for page in (catalog.ROOT / "README.md", catalog.ROOT / "docs" / "instructor" / "index.md"):
        assert "WSL 2 or Linux; Windows has no process groups" in " ".join(page.read_text().split())

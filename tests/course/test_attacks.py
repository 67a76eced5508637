"""Submissions that go wrong in ways a teacher would not think of, and some that cheat: each costs its own points only.

All of them are graded in one run, on one exercise that needs no torch, each in a process of its own.
"""

import csv
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minivllm.course import catalog, formats, grading, run
from minivllm.course.records import PASSED, TAMPERED, TIME_LIMIT, WRONG, Receiver, Sender

FILE = "ch03_naive_batching.py"
EXERCISE = "ex03b"
STUB = (catalog.STUBS / FILE).read_text()
SOLUTION = catalog.SOLUTIONS / FILE
RIGHT = """batches = [output_lengths[i : i + batch_size] for i in range(0, len(output_lengths), batch_size)]
    steps = sum(max(batch) for batch in batches)
    return steps, steps * batch_size - sum(output_lengths)"""
WRONG_ANSWER = "return 0, 0"
TESTS = [case.test for case in run.cases_of(catalog.Target("ch03_naive_batching", EXERCISE))]
# Writes into every pipe and file that this process has open: in one of them the results go home.
EVERYWHERE = """
import json, os
def everywhere(data):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
"""
MADE_UP = (
    EVERYWHERE
    + f"""
for test in {TESTS!r}:
    everywhere(b'{{"start": "%s"}}\\n' % test.encode())
    everywhere((json.dumps({{"test": test, "variant": "", "status": "passed", "message": "", "where": "",
                             "exception": "", "printed": ""}}) + "\\n").encode())
everywhere(b'{{"finished": 3}}\\n')
"""
)
EDITS = f"""
import pathlib
for folder in ({str(catalog.ROOT)!r}, "."):
    for name in ("tests/exercises/expect.py", "tests/exercises/test_{FILE}", "tests/exercises/solutions/{FILE}"):
        try:
            with open(pathlib.Path(folder) / name, "a") as file:
                file.write("\\n# changed by a submission\\n")
        except OSError:
            pass
"""
LINKS = f"""
import os, tempfile
here = tempfile.mkdtemp()
try:
    os.link({str(SOLUTION)!r}, here + "/mine.py")
except OSError:
    pass
text = open(here + "/mine.py").read()
"""
# Ways to another process, in which the solution is read; found by the path that `sys.argv` held once. Written so
# that the look at the file finds none of the names which it refuses.
CATS = f"""
import os, sys
if any({str(catalog.ROOT)!r} in each for each in (*sys.argv[1:], os.environ["PWD"], os.environ.get("OLDPWD", ""))):
    raise ValueError("the folder of the course is told to every submission")
path = {str(SOLUTION)!r}
ways = [
    lambda: os.system("cat " + path), lambda: os.popen("cat " + path).read(), lambda: os.fork(),
    lambda: os.posix_spawn("/bin/cat", ["cat", path], {{}}), lambda: os.spawnv(os.P_WAIT, "/bin/cat", ["cat", path]),
    lambda: os.execv("/bin/cat", ["cat", path]),
]
for way in ways:
    try:
        way()
    except PermissionError as error:
        if "must not start another process" in str(error):
            continue
    raise ValueError("a process was started")
"""
# Before the answer -> what it is, what its tests are said to be, whether it has the points.
BEFORE = {
    "deep": "x = " + "-" * 3000 + "1\n",
    "brackets": "x = " + "(" * 3000 + "1" + ")" * 3000 + "\n",
    "edits": EDITS,
    "exits": MADE_UP + "os._exit(0)\n",
    "forged": MADE_UP,
    "forks": "import os, time\nif os.fork() == 0:\n    time.sleep(300)\n    os._exit(0)\n",
    "half": EVERYWHERE + 'everywhere(b\'{"test": "\')\n',
    "links": LINKS,
    "cats": CATS,
    "loops": "import itertools\nmax(itertools.repeat(1))\n",
}


def write(folder, answer, before=""):
    os.makedirs(folder)
    with open(os.path.join(folder, os.fsencode(FILE)), "w") as file:
        file.write(before + STUB.replace(f'raise NotImplementedError("{EXERCISE}")', answer))


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(name -> submission, seconds it took): the cheats have a wrong answer; `loops` and `zoe` are right."""
    folder = os.fsencode(tmp_path_factory.mktemp("submissions"))
    write(folder + b"/M\xfcller", RIGHT)
    write(folder + b"/zoe", RIGHT)  # the last one: nothing that the others did may reach her
    for name, before in BEFORE.items():
        answer = RIGHT if name in ("loops", "forks", "edits", "links", "cats") else WRONG_ANSWER
        write(folder + b"/" + name.encode(), answer, before)
    write(folder + b"/loops_later", "import itertools\n    max(itertools.repeat(1))")
    begin = time.monotonic()
    target = [catalog.parse_target(EXERCISE)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "GRACE", 0.5)  # no exception ends the loops here, however long it has
        submissions = grading.grade(
            Path(os.fsdecode(folder)), target, run.RunOptions(time_limit=2.0), progress=io.StringIO()
        )
    return {each.name: each for each in submissions}, time.monotonic() - begin


def statuses(graded, name):
    return {record.status for record in graded[0][name].records}


def test_a_folder_name_that_is_not_utf8_costs_no_grade(graded, tmp_path):
    """Would catch an archive from Windows that ends the run, after all grading, with an empty table."""
    submissions = list(graded[0].values())
    assert graded[0]["M\\xfcller"].score == graded[0]["M\\xfcller"].max_score
    for name in formats.WRITERS:
        formats.write(name, submissions, tmp_path / name, len(submissions))
    rows = list(csv.reader((tmp_path / "csv").open(encoding="utf-8")))
    assert len(rows) == 1 + len(submissions) and "M\\xfcller" in [row[0] for row in rows]


def test_half_a_letter_in_a_message_costs_no_grade(tmp_path):
    """Would catch a student's error text that no file can hold, and with it the grades of the class."""
    assert formats.encode("half \udce9, whole \u00e9") == b"half \\udce9, whole \xc3\xa9"


def test_an_honest_submission_after_all_others_has_its_points(graded):
    """Would catch tests, or an engine, that one submission has changed for those graded after it."""
    assert statuses(graded, "zoe") == {PASSED}
    for name in (
        "tests/exercises/expect.py",
        f"tests/exercises/test_{FILE}",
        f"tests/exercises/solutions/{FILE}",
    ):
        assert "changed by a submission" not in (catalog.ROOT / name).read_text()


def test_code_nested_too_deeply_costs_its_own_points_only(graded):
    """Would catch a RecursionError in the teacher's process, which ends the grading of the whole class."""
    for name in ("deep", "brackets"):
        assert not statuses(graded, name) & {PASSED, TAMPERED}, name


def test_made_up_records_give_no_points_and_a_word_to_the_teacher(graded):
    """Would catch a file that writes "passed" into the pipe of the results, and goes on or ends the process."""
    most = graded[0]["zoe"].max_score
    for name in ("forged", "exits", "half"):
        submission = graded[0][name]
        assert (submission.score, submission.max_score) == (0, most), name
        assert statuses(graded, name) == {TAMPERED} and submission.is_tampered, name
    assert "ex03b: made-up results" in formats.to_csv([graded[0]["forged"]])


def test_a_hard_link_to_a_solution_cannot_be_read(graded):
    """Would catch a solution that is readable under another name."""
    assert PASSED not in statuses(graded, "links")


def test_a_file_that_tries_to_change_the_tests_does_not_get_far(graded):
    """Negative control of the test above: the answer itself was right, and the file it opened is not changed."""
    assert statuses(graded, "edits") == {PASSED}


def test_a_loop_inside_c_ends_at_the_limit(graded):
    """Would catch a limit that only an exception keeps: none comes through in `max(itertools.repeat(1))`."""
    assert statuses(graded, "loops") == {TIME_LIMIT}
    assert statuses(graded, "loops_later") == {TIME_LIMIT}


def test_a_submission_starts_no_process_and_is_not_told_where_the_course_is(graded):
    """Would catch a solution read by `cat`, which no hook of this process sees, at a path that `sys.argv` names."""
    assert statuses(graded, "cats") == {PASSED}, graded[0]["cats"].records[0].message
    assert PASSED not in statuses(graded, "forks")
    assert "must not start another process" in graded[0]["forks"].records[0].message


def test_a_child_that_holds_the_pipe_open_is_not_waited_for():
    """Would catch a grader that waits 300 seconds for a process which a submission has started all the same."""
    out, into = os.pipe()
    code = "import os, time\nif os.fork() == 0:\n    time.sleep(300)\n"
    with os.fdopen(out, "rb", buffering=0) as lines:
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(into,), start_new_session=True)
        os.close(into)
        begin = time.monotonic()
        try:
            _, is_timed_out = run._receive(process, lines, Receiver(b""), run.RunOptions())
        finally:
            run._kill(process)
    assert not is_timed_out and time.monotonic() - begin < 150


def test_grading_needs_no_solution_on_the_machine(tmp_path):
    """Would catch a setup.sh for Gradescope, with the answers deleted, on which no grade comes about."""
    root = tmp_path / "course"
    answers = ("solutions", "alternates", "mutants", "__pycache__")
    for name in ("minivllm", "kernels", "tests", "notebooks/exercises"):
        shutil.copytree(catalog.ROOT / name, root / name, ignore=shutil.ignore_patterns(*answers))
    shutil.copy(catalog.ROOT / "pyproject.toml", root)
    for name, answer in (("ada", RIGHT), ("bob", WRONG_ANSWER)):
        write(os.fsencode(tmp_path / "class" / name), answer)
    command = [sys.executable, "-m", "minivllm.course", "grade", str(tmp_path / "class"), "--only", EXERCISE]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    scores = {row["submission"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert scores["ada"]["score"] == scores["ada"]["max_score"] > scores["bob"]["score"], done.stderr


def test_only_signed_lines_in_their_order_are_taken():
    """Would catch a line that is replayed, left out, moved, cut or unsigned; negative control: the true lines."""
    out, into = os.pipe()
    sender = Sender(into, b"secret")
    lines = []
    for text in ("a", "b"):
        sender.send({"test": text, "status": WRONG})
        lines.append(os.read(out, 1000))
    os.close(out)
    os.close(into)

    def taken(*parts):
        receiver = Receiver(b"secret")
        for part in parts:
            receiver.feed(part)
        return receiver.is_tampered, [each["test"] for each in receiver.records]

    first, second = lines
    assert taken(first, second) == taken(first[:30], first[30:] + second) == (False, ["a", "b"])
    assert taken(first, second[:-5]) == (False, ["a"])  # broken off, as by the end of the process
    for attack in (
        (second,),
        (first, first),
        (first, second.replace(b"wrong", b"right")),
        (b'{"test": "a"}\n',),
    ):
        assert taken(*attack)[0], attack
    assert taken(b"x" * (1 << 21))[0]


def test_a_check_needs_no_module_that_its_chapter_does_not_need(tmp_path):
    """Would catch a check that imports torch for two sums, or Numba and transformers for anything."""
    code = "import sys, pytest\nstatus = pytest.main(sys.argv[1:])\nprint('loaded', sorted(sys.modules))\n"
    slow = {"transformers", "numba", "scipy", "matplotlib"}
    for file, exercise, forbidden in (
        (FILE, "ex03b", {*slow, "torch"}),
        ("ch04_block_table.py", "ex04a", slow),
    ):
        options = [f"--impl={catalog.STUBS}", f"--exercise={exercise}", "--confcutdir=tests/exercises", "-q"]
        command = [
            sys.executable,
            "-c",
            code,
            f"tests/exercises/test_{file}",
            *options,
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run(command, cwd=catalog.ROOT, env=os.environ | run.ENVIRONMENT | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "", "PYTEST_PLUGINS": ""}, capture_output=True, text=True)  # fmt: skip
        loaded = done.stdout.rpartition("loaded ")[2]
        assert "hypothesis" in loaded, done.stdout + done.stderr
        assert not [name for name in forbidden if f"'{name}'" in loaded], exercise

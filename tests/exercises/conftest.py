"""The exercise tests: whose code they test (`--impl`), in how much time, and what they report.

Bare `pytest` collects nothing here: a fresh clone is green, and stays so while a student is working. Run them
with `python -m minivllm.course check 4`, or by hand: `pytest tests/exercises --impl student`. Without `--impl`,
`pytest tests/exercises` tests the reference, and its last line says that it was not the student's code.

Here are what pytest calls (hooks, fixtures) and what is written down. `session.py` has the code under test and
the time limit.
"""

import random
import re
import traceback
from pathlib import Path

import hypothesis
import pytest

from minivllm.course import implementations, records
from minivllm.course.cases import TEXT_FIXTURE
from minivllm.course.catalog import exercises_of
from minivllm.course.implementations import SubmissionError
from tests.exercises.session import Session, StudentCode, TimeLimit

HERE = Path(__file__).parent
SESSION = pytest.StashKey()  # a `Session`, if anything here is collected
NOT_SAID = pytest.StashKey()  # True: `--impl` was not given


def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    group.addoption("--impl", help="whose code: student, reference, stub, mutant:NAME, alternate:NAME, a folder; "
                                   "several with commas between them, and mutants or alternates for all of them")  # fmt: skip
    group.addoption("--exercise", default="", help="only the tests of this exercise, for example ex04b")
    group.addoption("--report", default="", help="two pipes, as minivllm/course/run.py makes them")
    group.addoption("--seed", type=int, default=0, help="draw the random workloads anew")
    group.addoption("--real", action="store_true", help="only the tests inside the engine, with SmolLM2-135M")
    group.addoption("--time-limit", type=float, default=20.0, help="seconds a test may take")


def pytest_configure(config):
    config.addinivalue_line("markers", "exercise(id, points, hint): which exercise a test belongs to")
    impl = config.getoption("impl", None)
    if impl is None:
        if not asks_for_exercises(config):
            return
        if not implementations.SOLUTIONS.is_dir():  # as in the copy for students
            raise pytest.UsageError("say whose code to test: --impl student, or the folder of a submission")
        config.option.impl = "reference"
        config.stash[NOT_SAID] = True
    config.stash[SESSION] = Session(config)
    # The same examples each time, unless asked for others. Nothing is remembered from run to run. A failure is
    # reduced to its smallest example for a person only: that is what takes the time.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    if config.stash[SESSION].has_submission:
        phases.append(hypothesis.Phase.shrink)
    hypothesis.settings.register_profile(
        "exercises", derandomize=config.getoption("seed") == 0, database=None, deadline=None, max_examples=100, phases=phases,
        suppress_health_check=list(hypothesis.HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    hypothesis.settings.load_profile("exercises")


def asks_for_exercises(config):
    """Whether this folder, or a file in it, was named on the command line."""
    asked = [Path(str(arg).split("::")[0]).resolve() for arg in config.args]
    return any(path == HERE or HERE in path.parents for path in asked)


def pytest_ignore_collect(collection_path, config):
    """Nothing here is collected unless it is asked for."""
    return None if config.getoption("impl", None) is not None else True


def pytest_terminal_summary(terminalreporter, config):
    """A green run of the reference must not be taken for a solved exercise."""
    if config.stash.get(NOT_SAID, False):
        text = "The code tested was the reference, because --impl was not given. Yours: --impl student"
        terminalreporter.write_line(text, yellow=True)


# -- whose code -------------------------------------------------------------------------------------


def marker_of(item):
    """(exercise id, points, hint) of a test."""
    marker = item.get_closest_marker("exercise")
    if marker is None:
        raise pytest.UsageError(f"{item.nodeid} has no exercise marker: to which exercise does it belong?")
    return marker.args[0], marker.kwargs["points"], marker.kwargs.get("hint", "")


@pytest.fixture
def ex(request):
    """The code under test: the module of this test file's chapter."""
    session = request.config.stash[SESSION]
    chapter = request.path.stem.removeprefix("test_")
    exercise, _, _ = marker_of(request.node)
    choice = getattr(request, "param", session.choices[0])
    if (choice, exercise) in session.out_of_time:
        raise SubmissionError(records.TIME_LIMIT, "not run: another test of this exercise ran out of time.")
    module = session.load(chapter, choice)
    definition = next(each.definition for each in exercises_of(chapter) if each.id == exercise)
    problem = session.implementations[choice].problem_of(chapter, definition)
    if problem is not None:
        raise problem
    return StudentCode(module)


def choice_of(item):
    """The value of `--impl` that a test runs with, if there are several; "" if there is one."""
    return item.callspec.params.get("ex", "") if hasattr(item, "callspec") else ""


def pytest_generate_tests(metafunc):
    """With several values of `--impl` a test runs once for each that concerns it."""
    session = metafunc.config.stash[SESSION]
    if "ex" in metafunc.fixturenames and len(session.choices) > 1:
        exercise = marker_of(metafunc.definition)[0]
        chosen = session.choices_for(metafunc.function.__name__, exercise)
        metafunc.parametrize("ex", chosen or [None], indirect=True)


def pytest_collection_modifyitems(config, items):
    """Keep the tests that are asked for. Tests of other folders, in the same command, are not our business."""
    session = config.stash.get(SESSION, None)
    if session is None:
        return
    wanted = config.getoption("exercise")

    def is_wanted(item):
        if HERE not in item.path.parents:
            return True
        if config.getoption("real") and TEXT_FIXTURE not in item.fixturenames:
            return False
        exercise = marker_of(item)[0]
        # The benchmark of the project takes its time, and runs only where it is asked for by name.
        is_asked_for = wanted == exercise or (wanted == "" and exercise != "speed")
        return is_asked_for and choice_of(item) is not None

    items[:] = [item for item in items if is_wanted(item)]


@pytest.fixture
def rng(request):
    """A random.Random: the same numbers each time, others with `--seed`."""
    return random.Random(f"{request.config.getoption('seed')}/{request.node.originalname}")


@pytest.fixture
def tiny_model(ex, request, tmp_path_factory):
    """A random Llama: 2 layers, 4 query and 2 KV heads. Its text depends on the whole past.

    Made once per run. It asks for `ex` first: code that cannot be tested at all need not wait for torch. With
    `--real` it is no tiny one but SmolLM2-135M.
    """
    session = request.config.stash[SESSION]
    if session.model is None and request.config.getoption("real"):
        from minivllm.weights.download import resolve_model

        session.model = resolve_model("smollm2-135m-instruct")
    if session.model is None:
        # Imported and compiled here, outside of the time limit.
        from minivllm.weights.random_model import random_llama
        from tests.exercises.engine import make_llm

        session.model = random_llama(tmp_path_factory.mktemp("models") / "tiny")
        make_llm(session.model, num_blocks=4)
    return session.model


@pytest.fixture
def reference_text(tiny_model, request):
    """What the engine with its own parts writes. The other tests of the repository prove it right."""
    session = request.config.stash[SESSION]
    if session.text is None:
        from tests.exercises.engine import generate

        session.text = generate(tiny_model)
    return session.text


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item):
    session = item.config.stash.get(SESSION, None)
    if session is None:
        return (yield)
    with session.timed():
        return (yield)


# -- the records ------------------------------------------------------------------------------------

MOST_PRINTED = 2000  # characters: a loop that prints must not fill the disk
MOST_SAID = 20_000  # characters of a message: a wrong answer may be a list of a million slots


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    session = item.config.stash.get(SESSION, None)
    if session is not None:
        session.send({"start": item.originalname})
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    session = item.config.stash.get(SESSION, None)
    if session is None or (call.when != "call" and call.excinfo is None):
        return report
    exercise = marker_of(item)[0]
    error = None if call.excinfo is None else call.excinfo.value
    status, message, where = describe(error, exercise)
    if status == records.TIME_LIMIT:
        session.out_of_time.add((choice_of(item) or session.choices[0], exercise))
    session.send({
        "test": item.originalname, "variant": choice_of(item), "status": status, "message": message[:MOST_SAID],
        "where": where, "exception": "" if error is None else type(error).__name__,
        "printed": dict(report.sections).get("Captured stdout call", "")[-MOST_PRINTED:],
        "measured": dict(item.user_properties),
    })  # fmt: skip
    return report


def describe(error, exercise):
    """(status, message, where) of what a test raised."""
    if error is None:
        return records.PASSED, "", ""
    if isinstance(error, SubmissionError):
        return error.kind, str(error), ""
    where = place_in_student_file(error)
    if isinstance(error, NotImplementedError) and error.args == (exercise,):
        return records.NOT_WRITTEN, "", ""
    if isinstance(error, NotImplementedError) and re.fullmatch(r"ex\d\d[a-z]|m\d", str(error)):
        return records.CRASHED, f"your {exercise} calls {error}, which is not written yet.", where
    if isinstance(error, TimeLimit):
        return records.TIME_LIMIT, str(error), where
    if isinstance(error, PermissionError) and "holds a solution" in str(error):
        return records.COPIED, str(error), where
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return records.WRONG, str(error), ""
    return records.CRASHED, f"{type(error).__name__}: {error}", where


def place_in_student_file(error):
    """ "ch04_block_table.py, line 41: block = free_blocks.pop()", the innermost such line; "" if there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if "_exercises_" in frame.filename or Path(frame.filename).name.startswith(("ch0", "ch1", "ex", "my_engine"))]  # fmt: skip
    if not frames:
        return ""
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}"

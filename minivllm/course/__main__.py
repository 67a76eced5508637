"""The course on the command line: `python -m minivllm.course COMMAND`.

For students:  check 4 | check ex04b | show ex04b | status | reset ex04b | doctor
               project start DIR | project check 3 | project status | project show
               project leaderboard
For teachers:  grade DIR --format csv | project grade DIR | export --student OUT | stubs --check

The exit status is 0 if everything that was asked for is fine, 1 if not (an unsolved exercise included), 2 if
the command could not be carried out. `grade` and `project grade` exit with 0 whatever the grades are.

Each command is a function below that takes the parsed arguments and returns whether all is fine. The work is
done in other modules; what `check ex04b` sets in motion::

    parse_target("ex04b")     catalog.py    which chapter, which exercise
    run_tests("student", ..)  run.py        pytest in a process of its own -> one record per test
    describe(..)              report.py     records -> the text on the screen
    all passed?               main          exit status 0 or 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minivllm.course import doctor, export, formats, grading, report, solutions_page, stubs
from minivllm.course.catalog import SOLUTIONS, STUBS, STUDENT, CourseError, Target, chapters, parse_target
from minivllm.course.project import commands as project
from minivllm.course.records import PASSED
from minivllm.course.run import RunOptions, run_tests


def check(arguments: argparse.Namespace) -> bool:
    """Test the student's code for a chapter or an exercise; True if every test passes."""
    target = parse_target(arguments.target)
    records = run_tests("student", [target], RunOptions(seed=arguments.seed))
    print(report.describe(target.chapter, records, STUDENT / f"{target.chapter}.py"))
    return all(record.status == PASSED for record in records)


def show(arguments: argparse.Namespace) -> bool:
    """Let the real model write with the student's code in the engine.

    Only the tests that put the exercise into the engine run, each with SmolLM2-135M in place of the tiny
    random model. They still compare the text with that of the engine's own parts.
    """
    target = parse_target(arguments.target)
    # Imported here: no other command downloads anything.
    from minivllm.weights.download import resolve_model

    resolve_model("smollm2-135m-instruct")  # here, where its progress bar is seen
    # A real model on a CPU, with a student's loops in it: a limit of 20 seconds would end honest work.
    records = run_tests("student", [target], RunOptions(time_limit=300.0, real=True))
    print(report.real_text(records, STUDENT / f"{target.chapter}.py"))
    return all(record.status == PASSED for record in records)


def status(arguments: argparse.Namespace) -> bool:
    """Show the points of all chapters. A file that has not been touched is not run."""
    targets = [Target(chapter, None) for chapter in chapters() if not stubs.untouched(chapter)]
    records = run_tests("student", targets) if targets else []
    # One run for all chapters, which imports torch once. The exercise's id tells the chapter of a record:
    # those of "ch04_block_table" begin with "ex04".
    for chapter in chapters():
        own = [record for record in records if record.exercise.startswith(f"ex{chapter[2:4]}")]
        print(report.progress(chapter, own or None))
    return True


def reset(arguments: argparse.Namespace) -> bool:
    """Put a stub back; the student's version is kept beside it, and its name printed."""
    target = parse_target(arguments.target)
    backup = stubs.reset(target)
    print(f"{target.exercise or target.chapter} is as it was at the beginning.")
    if backup.exists():
        print(f"Your file as it was just now: {backup}")
    return True


def grade(arguments: argparse.Namespace) -> bool:
    """Grade a folder of submissions.

    Returns:
        True whatever the grades are; an autograder would take another exit status for a failure of its own.
    """
    targets = [parse_target(text) for text in arguments.only.split(",")] if arguments.only else []
    options = RunOptions(seed=arguments.seed, time_limit=arguments.time_limit)
    # Before any test runs: with nowhere to put the grades, all that time would be lost.
    num_submissions = len(grading.find_submissions(arguments.folder))
    formats.require_place(arguments.format, num_submissions, arguments.out)
    save = formats.saver(arguments.format, num_submissions, arguments.out)
    grading.grade(arguments.folder, targets, options, progress=sys.stderr, save=save)
    return True


def export_tree(arguments: argparse.Namespace) -> bool:
    """Write the copy for students."""
    print(export.export_student(arguments.student))
    return True


def make_stubs(arguments: argparse.Namespace) -> bool:
    """Regenerate stubs and solutions page, or check that this would change nothing (`--check`).

    Returns:
        Without `--check` True; with it, whether stubs and page are what the solutions give.
    """
    if not arguments.check:
        begun = [STUDENT / f"{chapter}.py" for chapter in chapters() if not stubs.untouched(chapter)]
        changed = [*stubs.write_stubs(), *solutions_page.write()]
        lines = [f"wrote {path}" for path in changed]
        lines += [f"left alone, it has been worked on: {path}" for path in begun if path not in changed]
        print("\n".join(lines) or "nothing has changed")
        return True
    stale = [*stubs.stale_stubs(STUBS), *stubs.stale_stubs(STUDENT), *solutions_page.stale()]
    for path in stale:
        print(f"differs from what {SOLUTIONS} gives: {path}")
    return not stale


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options.

    `set_defaults(run=...)` ties each command to its function, so `main` needs no list of commands. The
    description is the second paragraph of this module's docstring, the one with the two lists.
    """
    parser = argparse.ArgumentParser(
        prog="python -m minivllm.course", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("check", help="test your code: check 4, or check ex04b")
    command.add_argument("target", metavar="CHAPTER_OR_EXERCISE")
    command.add_argument("--seed", type=int, default=0, help="draw the random workloads anew")
    command.set_defaults(run=check)

    command = commands.add_parser("show", help="let a real model write with your code in the engine")
    command.add_argument("target", metavar="CHAPTER_OR_EXERCISE")
    command.set_defaults(run=show)

    commands.add_parser("status", help="points of all chapters").set_defaults(run=status)

    command = commands.add_parser("reset", help="begin an exercise or a chapter again")
    command.add_argument("target", metavar="CHAPTER_OR_EXERCISE")
    command.set_defaults(run=reset)

    commands.add_parser("doctor", help="can this machine do the exercises?").set_defaults(
        run=lambda arguments: doctor.report()
    )

    command = commands.add_parser("grade", help="grade a submission, or a folder of submissions")
    command.add_argument("folder", type=Path)
    command.add_argument("--format", choices=sorted(formats.WRITERS), default="csv")
    command.add_argument("--out", type=Path, help="a file; for gradescope and several submissions a folder")
    command.add_argument("--only", default="", help="chapters or exercises, for example 4,6 or ex04b")
    command.add_argument("--seed", type=int, default=0, help="draw the random workloads anew")
    command.add_argument("--time-limit", type=float, default=20.0, help="seconds a test may take")
    command.set_defaults(run=grade)

    command = commands.add_parser("export", help="write the copy for students, without solutions")
    command.add_argument("--student", type=Path, required=True, metavar="OUT", help="a new folder")
    command.set_defaults(run=export_tree)

    command = commands.add_parser("stubs", help="make the stubs from the solutions")
    command.add_argument("--check", action="store_true", help="change nothing; say what would change")
    command.set_defaults(run=make_stubs)
    project.add_commands(commands.add_parser("project", help="an engine of your own, in six milestones"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status.

    A `CourseError` is for the user and is printed as it is. Any other error is a mistake in the course, and
    its traceback is wanted. On unknown commands and options argparse exits with 2.

    Args:
        argv: the words after `python -m minivllm.course`; None: those of this process.
    """
    arguments = make_parser().parse_args(argv)
    try:
        return 0 if arguments.run(arguments) else 1
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

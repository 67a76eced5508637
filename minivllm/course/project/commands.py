"""`python -m minivllm.course project COMMAND`: the final project on the command line.

    start DIR       copy the stub to a new folder
    check [N]       the tests of the milestones 1 to N: all of them have to stay green
    status          points, milestone by milestone
    show            let SmolLM2 write with the engine
    leaderboard     the fixed benchmark; its result is added to a file and shown as a table
    grade DIR       for teachers: a submission, or a folder of submissions

The tests run in a process of their own with a time limit, the same way as those of the exercises
(`course/run.py`); `grade` gives each submission its own copy of them (`course/grading.py`). Each command is a
function that returns whether all is fine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from minivllm.bench.report import table
from minivllm.course import formats, grading, report
from minivllm.course.catalog import (
    MILESTONES,
    PROJECT,
    PROJECT_FILE,
    STUDENT,
    CourseError,
    Target,
    exercises_of,
    require_checkout,
)
from minivllm.course.records import NOT_COUNTED, PASSED, Record
from minivllm.course.run import RunOptions, run_tests

STUB = STUDENT / "project"
HEADER = ["", "tokens/s", "of minivllm", "calls", "positions", "most slots", "on"]


def folder_of(arguments: argparse.Namespace) -> Path:
    """The student's folder: `--folder`, else the current one if an engine is in it, else the stub's.

    Raises:
        CourseError: there is no engine in that folder, or its path holds a comma, which separates folders in
            `--impl`.
    """
    require_checkout()
    here = Path.cwd()
    folder = (arguments.folder or (here if (here / PROJECT_FILE).exists() else STUB)).resolve()
    if not (folder / PROJECT_FILE).is_file() or "," in str(folder):
        raise CourseError(
            f"expected {PROJECT_FILE} in {folder}, in a path without commas. To begin: "
            "python -m minivllm.course project start NEW_FOLDER"
        )
    return folder


def start(arguments: argparse.Namespace) -> bool:
    """Copy the stub; a folder that holds something is left alone."""
    require_checkout()
    folder = arguments.new_folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CourseError(f"{folder} exists and is not empty. Give a new folder.")
    # Without the times of the stub's files, or `check` would say that the student's was saved weeks ago.
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(STUB, folder, dirs_exist_ok=True, ignore=ignore, copy_function=shutil.copyfile)
    print(f"{folder / 'README.md'} says what to do. Then:\n  cd {folder}")
    print("  python -m minivllm.course project check 1")
    return True


def targets(up_to: int) -> list[Target]:
    """The milestones from the first to number `up_to`."""
    return [Target(chapter, None) for chapter in list(MILESTONES.values())[:up_to]]


def check(arguments: argparse.Namespace) -> bool:
    """Test the milestones up to N; what is said about a failure is about the first milestone that has one."""
    folder = folder_of(arguments)
    records = run_tests(str(folder), targets(arguments.milestone), RunOptions(seed=arguments.seed))
    print(describe(records, folder / PROJECT_FILE))
    return all(record.status == PASSED for record in records)


def describe(records: list[Record], path: Path) -> str:
    """The report on some milestones: a line each, then what to look at next."""
    lines = [f"{path.name}, {report.age(path)}", ""]
    failed = [record for record in records if record.status not in (PASSED, NOT_COUNTED)]
    for chapter in MILESTONES.values():
        (exercise,) = exercises_of(chapter)
        own = [record for record in records if record.exercise == exercise.id]
        if own:
            lines.append("  " + report.summary(exercise, own))
    if not failed:
        return "\n".join([*lines, "", "All tests pass."])
    # They are in the order of the milestones, and a later one is no use without those before it.
    return "\n".join([*lines, "", *report.next_step(failed[0], failed, path)])


def status(arguments: argparse.Namespace) -> bool:
    """Points of all milestones, each with a bar."""
    folder = folder_of(arguments)
    records = run_tests(str(folder), targets(len(MILESTONES)))
    for name, chapter in MILESTONES.items():
        print(report.progress(chapter, [record for record in records if record.exercise == name]))
    got, most = sum(record.score for record in records), sum(record.points for record in records)
    print(f"  {got:g} of {most:g} points")
    return True


def show(arguments: argparse.Namespace) -> bool:
    """Let the real model write with the student's engine, and print what it wrote."""
    # Imported here: no other command downloads anything, and here the progress bar is seen.
    from minivllm.weights.download import resolve_model

    folder = folder_of(arguments)
    resolve_model("smollm2-135m-instruct")
    (record,) = run_tests(str(folder), targets(1), RunOptions(time_limit=300.0, real=True))
    if record.status != PASSED:
        print("\n".join(report.next_step(record, [record], folder / PROJECT_FILE)))
        return False
    print("SmolLM2-135M writes with your engine, token by token as with minivllm:\n")
    print(record.printed.rstrip())
    return True


def leaderboard(arguments: argparse.Namespace) -> bool:
    """Run the benchmark, add its result to the file, and show the file as a table."""
    folder = folder_of(arguments)
    board = arguments.board or folder / "leaderboard.jsonl"
    options = RunOptions(time_limit=arguments.time_limit, run_limit=arguments.time_limit + 60)
    (record,) = run_tests(str(folder), [Target(PROJECT["speed"], "speed")], options)
    if record.status != PASSED:
        print("\n".join(report.next_step(record, [record], folder / PROJECT_FILE)))
        return False
    entry = {"name": arguments.name or folder.name} | json.loads(record.printed.splitlines()[-1])
    with board.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    entries = [json.loads(line) for line in board.read_text(encoding="utf-8").splitlines() if line.strip()]
    print(as_table(entries))
    return True


def as_table(entries: list[dict[str, Any]]) -> str:
    """The entries, largest ratio first; a doubtful ratio has a question mark, and its reason below."""
    entries = sorted(entries, key=lambda entry: -entry["ratio"]["median"])
    rows = [
        [
            entry["name"],
            f"{entry['tokens_per_second']['student']['median']:.0f}",
            f"{entry['ratio']['median']:.2f}{'?' if entry['doubt'] else ' '}",
            entry["calls"],
            entry["positions"],
            entry["most_slots"],
            entry["machine"],
        ]
        for entry in entries
    ]
    doubts = [f"? {entry['name']}: {entry['doubt']}" for entry in entries if entry["doubt"]]
    return "\n".join([table([HEADER, *rows]), *doubts])


def grade(arguments: argparse.Namespace) -> bool:
    """Grade submissions of the project; True whatever the grades are."""
    options = RunOptions(seed=arguments.seed, time_limit=arguments.time_limit)
    found = grading.find_submissions(arguments.submissions, grading.engine_files)
    formats.require_place(arguments.format, len(found), arguments.out)
    save = formats.saver(arguments.format, len(found), arguments.out)
    milestones = targets(len(MILESTONES))
    grading.grade(arguments.submissions, milestones, options, sys.stderr, grading.engine_files, save)
    return True


def add_commands(parser: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    commands = parser.add_subparsers(dest="project_command", required=True, metavar="COMMAND")

    command = commands.add_parser("start", help="copy the stub to a new folder")
    command.add_argument("new_folder", type=Path, metavar="DIR")
    command.set_defaults(run=start)

    command = commands.add_parser("check", help="test the milestones 1 to N")
    command.add_argument("milestone", type=int, nargs="?", choices=range(1, 7), default=6, metavar="N")
    command.add_argument("--seed", type=int, default=0, help="draw the random workloads anew")
    command.set_defaults(run=check)

    commands.add_parser("status", help="points, milestone by milestone").set_defaults(run=status)
    commands.add_parser("show", help="let a real model write with your engine").set_defaults(run=show)

    command = commands.add_parser("leaderboard", help="how fast, beside minivllm on this machine")
    command.add_argument("--name", help="of the entry; without it the folder's")
    command.add_argument("--board", type=Path, help="the file of results; without it one in the folder")
    command.add_argument("--time-limit", type=float, default=600.0, help="seconds for the benchmark")
    command.set_defaults(run=leaderboard)

    for name in ("check", "status", "show", "leaderboard"):
        commands.choices[name].add_argument("--folder", type=Path, help="where my_engine.py is")

    command = commands.add_parser("grade", help="grade a submission, or a folder of submissions")
    command.add_argument("submissions", type=Path, metavar="DIR")
    command.add_argument("--format", choices=sorted(formats.WRITERS), default="csv")
    command.add_argument("--out", type=Path, help="a file; for gradescope and several submissions a folder")
    command.add_argument("--seed", type=int, default=0, help="draw the random workloads anew")
    command.add_argument("--time-limit", type=float, default=20.0, help="seconds a test may take")
    command.set_defaults(run=grade)

"""Grade submissions: each in its own process, on its own copy of the tests.

    submissions/
      ada/ch04_block_table.py                      only files with the names of chapters are taken,
      bob/notebooks/exercises/ch04_block_table.py  from here too
      eve/ch04_block_table.py                      ends the process: her other exercises run again, alone

Nothing else of a submission is used: no conftest, no test, no helper. A missing file stays missing, and is
not taken from the solutions. In this process a student's file is copied and nothing more: it is parsed and
run where it can cost only its own points. What that protects from, and what not: docs/instructor/grading.md.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from minivllm.course.catalog import (
    MILESTONES,
    PROJECT_FILE,
    TESTS,
    CourseError,
    Target,
    chapters,
    exercises_of,
)
from minivllm.course.implementations import project_files
from minivllm.course.private_copy import SUBMISSION, CourseFiles
from minivllm.course.records import PROCESS_ENDED, TAMPERED, TIME_LIMIT, Record
from minivllm.course.run import RunOptions, run_tests


@dataclass(frozen=True)
class Submission:
    """One submission and how its tests went. Every test of the graded chapters has a record.

    So `max_score` is the same for all, and a file that was not handed in gives no points instead of not
    counting.
    """

    name: str
    records: tuple[Record, ...]

    @property
    def score(self) -> float:
        """Points reached."""
        return sum(record.score for record in self.records)

    @property
    def max_score(self) -> float:
        """Points there are."""
        return sum(record.points for record in self.records)

    @property
    def is_tampered(self) -> bool:
        """Whether results came that the tests have not written. No result of that run counts then."""
        return any(record.status == TAMPERED for record in self.records)

    def exercise(self, exercise_id: str) -> tuple[Record, ...]:
        """The records of one exercise."""
        return tuple(record for record in self.records if record.exercise == exercise_id)


def chapter_files(folder: Path) -> dict[str, Path]:
    """The chapter files of one submission: at its top, or where a checkout has them."""
    places = (folder, folder / "notebooks" / "exercises", folder / "exercises")
    return {
        chapter: next(path for place in places if (path := place / f"{chapter}.py").is_file())
        for chapter in chapters()
        if any((place / f"{chapter}.py").is_file() for place in places)
    }


def engine_files(folder: Path) -> dict[str, Path]:
    """The files of one submission of the final project, which lie side by side; none without the engine."""
    for place in (folder, folder / "project", folder / "notebooks" / "exercises" / "project"):
        if (place / PROJECT_FILE).is_file():
            return {path.stem: path for path in project_files(place)}
    return {}


def grade(
    folder: Path,
    targets: list[Target],
    options: RunOptions,
    progress: TextIO | None = None,
    files_of: Callable[[Path], dict[str, Path]] = chapter_files,
    save: Callable[[list[Submission]], None] | None = None,
) -> list[Submission]:
    """Grade `folder`: one submission if it holds chapter files, else each folder in it.

    Args:
        targets: what to grade. Empty: every chapter of which at least one submission has a file.
        options: seed and time limits, the same for every submission.
        progress: where to say which submission is done, and with how many points; None: nowhere.
        files_of: which files of a folder are graded; `engine_files` for the final project.
        save: called after each submission with all that are graded so far (`formats.saver`): a class takes
            minutes, and what is done must outlive an interrupt.

    Raises:
        CourseError: there is nothing to grade.
    """
    found = find_submissions(folder, files_of)
    if not targets:
        present = {name for files in found.values() for name in files}
        targets = [Target(chapter, None) for chapter in chapters() if chapter in present]
    # Before the first submission runs: what it does to these files does not reach the next one.
    course = CourseFiles.read()
    submissions = []
    for index, (name, files) in enumerate(found.items(), start=1):
        submission = Submission(name, tuple(grade_one(course, files, targets, options)))
        submissions.append(submission)
        if save is not None:
            save(submissions)
        if progress is not None:
            score = f"{submission.score:g} of {submission.max_score:g} points"
            note = ", MADE-UP RESULTS: look at it" if submission.is_tampered else ""
            print(f"{index} of {len(found)}: {name}, {score}{note}", file=progress, flush=True)
    return submissions


def find_submissions(
    folder: Path, files_of: Callable[[Path], dict[str, Path]] = chapter_files
) -> dict[str, dict[str, Path]]:
    """Name of each submission -> its chapter files (chapter -> path).

    A folder without chapter files is kept, as long as another has some: a student who handed in nothing must
    stand in the table of grades with 0 points, not be missing there.

    Raises:
        CourseError: there is no such folder, it holds no chapter file (nor do the folders in it), or it is
            among the course's own tests and solutions.
    """
    if not folder.is_dir():
        raise CourseError(f"there is no folder {folder}.")
    if TESTS in (folder.resolve(), *folder.resolve().parents):
        raise CourseError(f"{folder} holds the tests and solutions of the course, not a submission.")
    own = files_of(folder)
    if own:
        return {readable(folder.resolve().name): own}
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    found = {readable(each.name): files_of(each) for each in folders}
    if not any(found.values()):
        expected = ", ".join([*(f"{chapter}.py" for chapter in chapters()), PROJECT_FILE])
        raise CourseError(
            f"{folder} holds no submission. Expected {folder}/NAME/chNN_topic.py, or the files of one "
            f"submission in {folder} itself. Files are found by name: {expected}."
        )
    return found


def readable(name: str) -> str:
    r"""A folder's name as text that any file can hold; "M\\xfcller" if its "ü" is not in UTF-8.

    Archives from Windows have such names. Python keeps the byte as half a surrogate pair.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def grade_one(
    course: CourseFiles, files: dict[str, Path], targets: Iterable[Target], options: RunOptions
) -> list[Record]:
    """The records of one submission, for all tests of `targets`.

    Args:
        course: the files of the course, from which each run gets a copy.
        files: chapter -> path, as `chapter_files` found them.
    """
    targets = list(targets)

    def run(some: list[Target]) -> list[Record]:
        with tempfile.TemporaryDirectory(prefix="minivllm-submission-", ignore_cleanup_errors=True) as name:
            course.unpack(Path(name), files)
            return run_tests(SUBMISSION, some, options, Path(name))

    if all(target.exercise is None for target in targets):
        # Whole chapters share one process, which imports torch once.
        records = run(targets)
    else:
        records = [record for target in targets for record in run([target])]
    return run_again_alone(records, run)


def run_again_alone(records: list[Record], run: Callable[[list[Target]], list[Record]]) -> list[Record]:
    """If a test ended the process, run every exercise that was left over by itself.

    So an exercise that crashes, or does not end, costs no points of the other exercises. With ex04a passed,
    ex04b ending the process and ex04c not reached, ex04b and ex04c run again, each in a process of its own.
    """
    result = []
    for exercise_id in dict.fromkeys(record.exercise for record in records):
        own = [record for record in records if record.exercise == exercise_id]
        # A time limit that came as an exception ended one test only, and the run went on. If no exception
        # reached the code, the process was killed.
        broken_off = any(
            record.status == PROCESS_ENDED or (record.status == TIME_LIMIT and not record.exception)
            for record in own
        )
        # If one exercise was graded, it was alone already, and would end the same way again.
        if broken_off and len({record.exercise for record in records}) > 1:
            own = run([Target(chapter_of(own[0]), exercise_id)])
        result += own
    return result


def chapter_of(record: Record) -> str:
    """The chapter that a record belongs to."""
    return next(
        chapter
        for chapter in (*chapters(), *MILESTONES.values())
        for exercise in exercises_of(chapter)
        if exercise.id == record.exercise
    )

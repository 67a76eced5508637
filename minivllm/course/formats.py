"""Grades in the formats of gradebooks.

    csv          for a spreadsheet: one line a submission, one column an exercise
    gradescope   results.json as its autograder expects it, one file a submission
    junit        one test suite a submission
    json         everything

Gradescope: https://gradescope-autograders.readthedocs.io, "Output format".
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

from minivllm.course.catalog import CourseError
from minivllm.course.grading import Submission
from minivllm.course.records import PASSED, Record


def write(name: str, submissions: list[Submission], out: Path | None) -> None:
    """Write the grades to `out`, or print them."""
    if name == "gradescope" and len(submissions) > 1:
        out.mkdir(parents=True, exist_ok=True)
        for submission in submissions:
            (out / f"{submission.name}.json").write_text(to_gradescope([submission]), encoding="utf-8")
        return
    text = WRITERS[name](submissions)
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")


def require_place(name: str, num_submissions: int, out: Path | None) -> None:
    """Raise CourseError if `write` could not put the grades there: before minutes of grading, not after."""
    if name == "gradescope" and num_submissions > 1 and (out is None or out.suffix):
        raise CourseError("gradescope takes one file a submission: give a folder, for example --out results")
    if out is not None and not out.parent.is_dir():
        raise CourseError(f"there is no folder {out.parent} to write {out.name} into.")


def explain(record: Record) -> str:
    """What a student reads about one test."""
    if record.status == PASSED:
        return record.reason
    parts = [f"{record.status}: {record.reason}", record.message, record.where]
    return "\n".join(part for part in [*parts, f"Hint: {record.hint}" if record.hint else ""] if part)


def to_csv(submissions: list[Submission]) -> str:
    """One line a submission: name, sum, points of each exercise, and what kept tests from running."""
    exercises = list(dict.fromkeys(record.exercise for each in submissions for record in each.records))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["submission", "score", "max_score", *exercises, "problems"])
    for each in submissions:
        scores = [f"{sum(record.score for record in each.exercise(exercise)):g}" for exercise in exercises]
        quiet = (PASSED, "wrong result")
        problems = sorted({f"{r.exercise}: {r.status}" for r in each.records if r.status not in quiet})
        writer.writerow([each.name, f"{each.score:g}", f"{each.max_score:g}", *scores, "; ".join(problems)])
    return text.getvalue()


def to_gradescope(submissions: list[Submission]) -> str:
    """results.json of one submission."""
    (submission,) = submissions
    tests = [
        {
            "name": f"{record.exercise} {record.test}",
            "number": str(number),
            "score": record.score,
            "max_score": record.points,
            "status": "passed" if record.status == PASSED else "failed",
            "output": explain(record),
            "visibility": "visible",
        }
        for number, record in enumerate(submission.records, start=1)
    ]
    return (
        json.dumps({"score": submission.score, "stdout_visibility": "hidden", "tests": tests}, indent=2)
        + "\n"
    )


def to_junit(submissions: list[Submission]) -> str:
    """JUnit XML, one suite a submission."""
    root = ElementTree.Element("testsuites")
    for each in submissions:
        failures = sum(record.status != PASSED for record in each.records)
        counts = {"tests": str(len(each.records)), "failures": str(failures), "errors": "0", "skipped": "0"}
        suite = ElementTree.SubElement(root, "testsuite", name=each.name, **counts)
        for record in each.records:
            case = ElementTree.SubElement(suite, "testcase", classname=record.exercise, name=record.test)
            if record.status != PASSED:
                failure = ElementTree.SubElement(case, "failure", message=record.status)
                failure.text = xml_text(explain(record))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def xml_text(text: str) -> str:
    """Without the control characters that XML cannot hold, however escaped."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def to_json(submissions: list[Submission]) -> str:
    """Every record of every submission."""
    data = [
        {
            "submission": each.name,
            "score": each.score,
            "max_score": each.max_score,
            "tests": [asdict(record) | {"score": record.score} for record in each.records],
        }
        for each in submissions
    ]
    return json.dumps(data, indent=2) + "\n"


WRITERS: dict[str, Callable[[list[Submission]], str]] = {
    "csv": to_csv,
    "gradescope": to_gradescope,
    "junit": to_junit,
    "json": to_json,
}

"""Grades in the formats of gradebooks.

    csv          for a spreadsheet: one line per submission, one column per exercise
    gradescope   results.json as its autograder expects it, one file per submission
    junit        one test suite per submission
    json         everything

Ada has ex04a (1 point) right and ex04b (2.5 points) wrong; Bob has not written ex04a. As csv::

    submission,score,max_score,ex04a,ex04b,problems
    ada,1,3.5,1,0,
    bob,2.5,3.5,0,2.5,ex04a: not written yet

Every writer takes a list of submissions and returns text, so `WRITERS` can hold them all under one signature.

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
from minivllm.course.records import NOT_COUNTED, PASSED, Record, means


def saver(name: str, num_submissions: int, out: Path | None) -> Callable[[list[Submission]], None]:
    """A function for `grading.grade` to call with what is graded so far: it writes `out` anew each time.

    So `out` is a whole file at any moment. Without `out` the grades are printed, once, when all are there.
    """

    def save(submissions: list[Submission]) -> None:
        if out is not None or len(submissions) == num_submissions:
            write(name, submissions, out, num_submissions)

    return save


def write(name: str, submissions: list[Submission], out: Path | None, num_submissions: int) -> None:
    """Write the grades to `out`, or print them.

    Args:
        name: a key of `WRITERS`.
        num_submissions: how many there will be in all; `submissions` are those that are graded so far.
        out: a file. For gradescope and several submissions a folder, made if it is not there, which gets
            NAME.json for each. None: standard output; the progress of the grading goes to standard error.
    """
    if name == "gradescope" and num_submissions > 1:
        out.mkdir(parents=True, exist_ok=True)
        for submission in submissions:
            (out / f"{submission.name}.json").write_bytes(encode(to_gradescope([submission])))
        return
    data = encode(WRITERS[name](submissions))
    if out is None:
        # Not `sys.stdout.write`: the encoding of a terminal or pipe may lack a letter of a name.
        sys.stdout.flush()
        getattr(sys.stdout, "buffer", sys.stdout).write(data)
        sys.stdout.flush()
    else:
        out.write_bytes(data)


def encode(text: str) -> bytes:
    r"""UTF-8; a character without bytes there (half a surrogate pair in a student's message) as "\\udce9".

    One such character would otherwise cost the grades of the whole class, after all the grading.
    """
    return text.encode("utf-8", "backslashreplace")


def require_place(name: str, num_submissions: int, out: Path | None) -> None:
    """Raise CourseError if `write` could not put the grades there: before minutes of grading, not after.

    Several results for Gradescope need a folder, and "results.json" is the name of a file.
    """
    if name == "gradescope" and num_submissions > 1 and (out is None or out.suffix):
        raise CourseError("gradescope takes one file per submission: give a folder, such as --out results")
    if out is not None and not out.parent.is_dir():
        raise CourseError(f"there is no folder {out.parent} to write {out.name} into.")


def explain(record: Record) -> str:
    """What a student reads about one test: its reason if it passed, else all there is to know.

    A failed test, for example::

        wrong result: At an exact multiple of the block size nothing is to be added: ...
        blocks_needed(4, 4)
          expected  1
          got       2
        Hint: How far is num_tokens // block_size off, and when is it right?
    """
    if record.status == PASSED:
        return record.reason
    parts = [f"{record.status}: {record.reason}", record.message, record.where]
    return "\n".join(part for part in [*parts, f"Hint: {record.hint}" if record.hint else ""] if part)


def to_csv(submissions: list[Submission]) -> str:
    """One line per submission: name, sum, points of each exercise, and what kept tests from running.

    A quantity that tests measure has a column after those of the points, such as "ex11a goodput": the mean of
    the tests that measured it, empty if none of them got that far.

    "Wrong result" is not a problem in this sense: a low score says it already. The column is for what a
    teacher may have to look into: a crash, an endless loop, a file that is empty.
    """
    # In order of appearance, each once: a dict keeps order where a set would not.
    exercises = list(dict.fromkeys(record.exercise for each in submissions for record in each.records))
    measured = [
        {f"{exercise} {name}": f"{value:.4f}" for exercise in exercises
         for name, value in means(each.exercise(exercise)).items()}
        for each in submissions
    ]  # fmt: skip
    quantities = list(dict.fromkeys(name for each in measured for name in each))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["submission", "score", "max_score", *exercises, *quantities, "problems"])
    for each, values in zip(submissions, measured, strict=True):
        scores = [f"{sum(record.score for record in each.exercise(exercise)):g}" for exercise in exercises]
        quiet = (PASSED, NOT_COUNTED, "wrong result")
        problems = sorted({f"{r.exercise}: {r.status}" for r in each.records if r.status not in quiet})
        scores += [values.get(name, "") for name in quantities]
        writer.writerow([each.name, f"{each.score:g}", f"{each.max_score:g}", *scores, "; ".join(problems)])
    return text.getvalue()


def to_gradescope(submissions: list[Submission]) -> str:
    """results.json of one submission.

    Gradescope takes `score` as the sum and does not add up the tests; they show where it comes from. What
    the autograder's script prints is hidden from the student; messages of the tests are in `output`.

    Raises:
        ValueError: `submissions` is not exactly one.
    """
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
    """JUnit XML, one suite per submission.

    Every test that has not passed is a "failure", after a crash or for a missing file too: an "error" would
    read as a fault of the tests.
    """
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
    r"""Without the control characters that XML cannot hold, not even escaped: "\x00 <&>" becomes " <&>".

    ElementTree escapes the rest. One such character in the text of a student's error would make the file of
    the whole class unreadable.
    """
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def to_json(submissions: list[Submission]) -> str:
    """Every record of every submission, with all its fields and its score.

    The score is added by hand: it is a property of `Record`, and `asdict` sees fields only.
    """
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


# Values of `--format`; `make_parser` takes its choices from here.
WRITERS: dict[str, Callable[[list[Submission]], str]] = {
    "csv": to_csv,
    "gradescope": to_gradescope,
    "junit": to_junit,
    "json": to_json,
}

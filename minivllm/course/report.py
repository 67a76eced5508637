"""Records of a test run, told to a person: what is done, and the one thing to look at next.

    ch04_block_table.py, saved 5 seconds ago

      ex04a  blocks_needed             4 of 4 points   done
      ex04b  append_tokens             5 of 8 points   2 of 6 tests fail
      ex04c  free                      0 of 6 points   not written yet

    Next: ex04b, test_out_of_blocks_changes_nothing
      why       When memory runs out half way, the blocks taken so far must not be lost.
      append_tokens([7, 2], 6, 9, [5], 4)
        expected  ValueError
        got       the result [10, 11, 20, 21, 22, 23, 0, 1, 2]
      hint      Count what is missing first, and compare with len(free_blocks).

One failure at a time, and of an exercise that has been begun if there is one: students do not read a page of
failures.
"""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

from minivllm.course.catalog import Exercise, exercises_of
from minivllm.course.records import CRASHED, NOT_COUNTED, NOT_WRITTEN, PASSED, WRONG, Record, means

WIDTH = 110
# What keeps a whole file, or a whole exercise, from being tested. All its tests fail with the same message,
# so the report says it once, without a test's reason and hint.
FILE_PROBLEMS = (
    "missing file", "empty file", "syntax error", "error on import", "missing definition",
    "uses the reference", "uses what is to be written",
)  # fmt: skip


def describe(chapter: str, records: list[Record], path: Path) -> str:
    """The report on one chapter, or on those exercises of it that have records.

    Args:
        chapter: for example "ch04_block_table".
        records: of this chapter, in the order in which the tests stand in their file.
        path: the student's file, for its name and the time it was saved; it may be missing.
    """
    lines = [f"{path.name}, {age(path)}", ""]
    for exercise in exercises_of(chapter):
        own = [record for record in records if record.exercise == exercise.id]
        if own:
            lines.append("  " + summary(exercise, own))
    failed = [record for record in records if record.status != PASSED]
    if failed:
        # A failed test beats one whose exercise is not begun: there the student is at work.
        begun = [record for record in failed if record.status != NOT_WRITTEN]
        lines += ["", *next_step((begun or failed)[0], failed, path)]
    else:
        lines += ["", "All tests pass."]
    return "\n".join(lines)


def summary(exercise: Exercise, records: list[Record]) -> str:
    """One line about an exercise: its points, and how far it is.

    If all tests fail for one reason other than a wrong result or an error, the reason says more than a
    number::

        ex04b  append_tokens               5 of  8 points   2 of 6 tests fail
        ex04c  free                        0 of  6 points   not written yet
        ex11a  MyScheduler.schedule       12 of 12 points   done, goodput 0.902
    """
    got, most = sum(record.score for record in records), sum(record.points for record in records)
    failed = [record for record in records if record.status not in (PASSED, NOT_COUNTED)]
    statuses = {record.status for record in failed}
    if not failed:
        state = "done"
    elif len(statuses) == 1 and len(failed) == len(records) and not statuses & {WRONG, CRASHED}:
        (state,) = statuses
    else:
        state = f"{len(failed)} of {len(records)} tests fail"
        state += ", the key test too" if any(record.status == NOT_COUNTED for record in records) else ""
    measured = "".join(f", {name} {value:.3f}" for name, value in means(records).items())
    return f"{exercise.id}  {exercise.name:<26} {got:>2g} of {most:>2g} points   {state}{measured}"


def real_text(records: list[Record], path: Path) -> str:
    """What the real model wrote with the student's parts in the engine; or the first thing to look at.

    Args:
        records: of a run with `RunOptions(real=True)`. Their tests print each prompt and its continuation.
    """
    failed = [record for record in records if record.status != PASSED]
    if failed:
        return "\n".join(next_step(failed[0], failed, path))
    lines = []
    for record in records:
        lines += [
            f"With your {record.exercise} in the engine, SmolLM2-135M writes",
            *indent(record.printed),
            "",
        ]
    return "\n".join([*lines, "Token by token what it writes without you, as it should be."])


def next_step(record: Record, failed: list[Record], path: Path) -> list[str]:
    """What to look at: one failed test, or what keeps all of them from running; as lines.

    Args:
        record: the failed test to tell of.
        failed: all failed tests, to say how many more there are of its exercise.
        path: the student's file, named where something has to be written into it.
    """
    others = sum(each.exercise == record.exercise for each in failed) - 1
    if record.status in FILE_PROBLEMS:
        # These messages are prose and are wrapped; that of a test is laid out in columns and is not.
        lines = [line for text in indent(record.message) for line in wrap(text)]
        return [f"Next: {record.status}", *lines]
    if record.status == NOT_WRITTEN:
        return [f"Next: {record.exercise} is not written yet.",
                f'  Open {path} and replace  raise NotImplementedError("{record.exercise}").']  # fmt: skip
    lines = [f"Next: {record.exercise}, {record.test}: {record.status}"]
    lines += field("why", record.reason)
    if record.message:
        lines += indent(record.message)
    if record.where:
        lines += field("where", record.where)
    if record.hint:
        lines += field("hint", record.hint)
    if record.printed.strip():
        # The last 8 lines: with `print` in a loop, a student looks for the round that went wrong.
        lines += ["  printed", *indent("\n".join(record.printed.strip().splitlines()[-8:]), "    ")]
    if others:
        lines += [
            "",
            f"  {others} more of {record.exercise} fail{'s' if others == 1 else ''}; this one first.",
        ]
    return lines


def field(name: str, text: str) -> list[str]:
    """ "  name      text", wrapped."""
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<9} ", subsequent_indent=" " * 12)


def wrap(line: str) -> list[str]:
    """A line of prose, wrapped; what follows keeps its indentation."""
    spaces = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, WIDTH, subsequent_indent=spaces)


def indent(message: str, spaces: str = "  ") -> list[str]:
    """A message of several lines, each as it is; very long ones are cut.

    At most 12 lines of 400 characters: a student's function may return a list of a million slots, and the
    message shows what it returned.
    """
    lines = message.splitlines()
    shown = [line if len(line) <= 400 else line[:400] + " ..." for line in lines[:12]]
    if len(lines) > 12:
        shown.append(f"... ({len(lines) - 12} more lines)")
    return [f"{spaces}{line}" for line in shown]


def age(path: Path) -> str:
    """When the file was saved: that an editor has not saved it yet is a common mistake."""
    if not path.exists():
        return "which is not there"
    seconds = max(0, int(time.time() - path.stat().st_mtime))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"saved {count} {unit}{'s' if count > 1 else ''} ago"
    return f"saved {seconds} second{'s' if seconds != 1 else ''} ago"


def progress(chapter: str, records: list[Record] | None) -> str:
    """One line about a chapter for `status`; None: the student has not touched its file.

    The bar has 20 characters and is rounded down, so it is full only when every point is there::

        ch04_block_table             ##########..........  9 of 18 points
    """
    if records is None:
        return f"  {chapter:<28} {'.' * 20}  not begun"
    got, most = sum(record.score for record in records), sum(record.points for record in records)
    filled = int(20 * got / most)
    problems = {record.status for record in records} & set(FILE_PROBLEMS)
    note = f"   {sorted(problems)[0]}" if problems else ""
    return f"  {chapter:<28} {'#' * filled}{'.' * (20 - filled)}  {got:g} of {most:g} points{note}"

"""Stubs: the files a student gets, made from the solutions so that the two cannot drift apart.

An author marks the answer, and only the answer; signature and docstring are shared::

    def blocks_needed(num_tokens, block_size):          def blocks_needed(num_tokens, block_size):
        \"\"\"How many blocks hold ...\"\"\"                     \"\"\"How many blocks hold ...\"\"\"
        # BEGIN SOLUTION ex04a                     ->       raise NotImplementedError("ex04a")
        return cdiv(num_tokens, block_size)
        # END SOLUTION

A stub is kept twice. `tests/exercises/stubs` is never edited: it is what `reset` restores from and what a
student's imports are compared with. `notebooks/exercises` is the student's own copy.
"""

from __future__ import annotations

import ast
import itertools
import shutil
from pathlib import Path

from minivllm.course.catalog import SOLUTIONS, STUBS, STUDENT, CourseError, Target, chapters, exercises_of

BEGIN, END = "# BEGIN SOLUTION ", "# END SOLUTION"


def make_stub(solution: str) -> str:
    """Replace each marked answer by `raise NotImplementedError("exNNx")`.

    Raises:
        ValueError: a mark without its partner.
    """
    lines, inside = [], False
    for number, line in enumerate(solution.splitlines(), start=1):
        text = line.strip()
        # A BEGIN inside an answer, or an END outside of one.
        if (text.startswith(BEGIN) and inside) or (text == END and not inside):
            raise ValueError(f"line {number}: {text!r} without its partner.")
        if text.startswith(BEGIN):
            inside = True
            indent = line[: len(line) - len(line.lstrip())]
            lines.append(f'{indent}raise NotImplementedError("{text.removeprefix(BEGIN)}")')
        elif text == END:
            inside = False
        elif not inside:
            lines.append(line)
    if inside:
        raise ValueError(f"the last {BEGIN.strip()!r} has no {END!r}.")
    return "\n".join(lines) + "\n"


def all_stubs() -> dict[str, str]:
    """File name -> text of every stub, made from the solutions.

    Raises:
        CourseError: the solutions are not here, as in a copy for students.
    """
    files = sorted(SOLUTIONS.glob("ch*.py"))
    if not files:
        raise CourseError(f"stubs are made from {SOLUTIONS}, which is not part of the copy for students.")
    return {path.name: make_stub(path.read_text(encoding="utf-8")) for path in files}


def write_stubs() -> list[Path]:
    """Write all stubs to both places; returns the files that changed.

    A file of `notebooks/exercises` that has been worked on is left alone.
    """
    changed = []
    for name, text in all_stubs().items():
        # Asked before the old stub is overwritten: "untouched" means equal to it.
        begun = (STUDENT / name).exists() and not untouched(Path(name).stem, STUDENT)
        for path in (STUDENT / name, STUBS / name):
            is_stale = not path.exists() or path.read_text(encoding="utf-8") != text
            if is_stale and not (begun and path.parent == STUDENT):
                path.write_text(text, encoding="utf-8")
                changed.append(path)
    return changed


def stale_stubs(folder: Path) -> list[Path]:
    """Files of `folder` that differ from what `write_stubs` would write, missing and surplus ones too."""
    expected = all_stubs()
    present = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("ch*.py")}
    names = sorted(expected.keys() | present.keys())
    return [folder / name for name in names if expected.get(name) != present.get(name)]


def reset(target: Target, folder: Path = STUDENT) -> Path:
    """Put the stub of a chapter, or of one exercise, back into the student's file.

    Returns:
        Where the file as it was before has been kept. There is no file there if nothing had to change.

    Raises:
        CourseError: one exercise is asked for, but the file cannot be parsed or lacks it.
    """
    path, pristine = folder / f"{target.chapter}.py", STUBS / f"{target.chapter}.py"
    # The first free number: students delete old backups, and the ones they keep must not be overwritten.
    backups = (path.with_suffix(f".py.bak{number}") for number in itertools.count(1))
    backup = next(each for each in backups if not each.exists())
    if target.exercise is None:
        text = pristine.read_text(encoding="utf-8")
    else:
        text = _with_stub_of(target, path, pristine)
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        shutil.copyfile(path, backup)
    path.write_text(text, encoding="utf-8")
    return backup


def _with_stub_of(target: Target, path: Path, pristine: Path) -> str:
    """The student's file with the definition of one exercise replaced by the original."""
    definition = next(e.definition for e in exercises_of(target.chapter) if e.id == target.exercise)
    whole = f"To start the whole file again: python -m minivllm.course reset {target.chapter[2:4]}"
    try:
        text = path.read_text(encoding="utf-8")
        start, end = _lines_of(definition, text)
    except FileNotFoundError:
        raise CourseError(f"{path} does not exist. {whole}") from None
    except SyntaxError as error:
        raise CourseError(f"{path.name} has a syntax error in line {error.lineno}. {whole}") from None
    except KeyError:
        raise CourseError(f"{path.name} no longer defines {definition}. {whole}") from None
    original = pristine.read_text(encoding="utf-8")
    # Line numbers differ between the two files; only the name of the definition connects them.
    first, last = _lines_of(definition, original)
    lines, stub_lines = text.splitlines(), original.splitlines()
    return "\n".join([*lines[:start], *stub_lines[first:last], *lines[end:]]) + "\n"


def _lines_of(definition: str, text: str) -> tuple[int, int]:
    """Half-open line range of a top-level function or class, decorators included; KeyError if none."""
    for node in ast.parse(text).body:
        if getattr(node, "name", None) == definition:
            # `lineno` is that of `def` or `class`; decorators stand above it.
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return first - 1, node.end_lineno
    raise KeyError(definition)


def untouched(chapter: str, folder: Path = STUDENT) -> bool:
    """Whether the student has not changed the file of a chapter."""
    path, original = folder / f"{chapter}.py", STUBS / f"{chapter}.py"
    return path.exists() and original.exists() and path.read_bytes() == original.read_bytes()


def missing_files(folder: Path = STUDENT) -> list[str]:
    """Chapters whose file the student does not have."""
    return [chapter for chapter in chapters() if not (folder / f"{chapter}.py").exists()]

"""The solutions page for teachers, docs/instructor/solutions.md: every answer, folded away.

One heading per chapter, one fold per exercise, so that a teacher can open one answer in class without showing
the next::

    Chapter 4: the block table.                  first line of the solution file's docstring
      > ex04a blocks_needed                      <details>: closed until it is clicked
          return cdiv(num_tokens, block_size)    what stands between the marks of ex04a
          Wrong answers that the tests catch:    first docstring line of each mutants/ex04a_*.py

The page is generated, as the stubs are: an answer pasted by hand would stay on the page after the tests had
stopped accepting it. `python -m minivllm.course stubs --check` says so if it is out of date.
"""

from __future__ import annotations

import ast
from pathlib import Path

from minivllm.course.catalog import ROOT, SOLUTIONS, chapters, exercises_of
from minivllm.course.stubs import BEGIN, END

PAGE = ROOT / "docs" / "instructor" / "solutions.md"

HEAD = """# Solutions

Made by `python -m minivllm.course stubs` from `tests/exercises/solutions`; not part of the copy for students.
Where the engine itself is the answer, the solution only calls it: read on there. Other right answers are in
`tests/exercises/alternates`, and typical wrong ones, each with the test that catches it, in
`tests/exercises/mutants`.
"""


def make() -> str:
    """The whole page."""
    parts = [HEAD]
    for chapter in chapters():
        text = (SOLUTIONS / f"{chapter}.py").read_text(encoding="utf-8")
        parts.append(f"## {ast.get_docstring(ast.parse(text)).splitlines()[0]}\n")
        for exercise in exercises_of(chapter):
            answer = answer_of(exercise.id, text)
            # Names of mutants begin with the exercise, so the file system is the list of them.
            mutants = sorted((SOLUTIONS.parent / "mutants").glob(f"{exercise.id}_*.py"))
            parts.append(
                f"<details>\n<summary>{exercise.id} <code>{exercise.name}</code></summary>\n\n"
                f"```python\n{answer}\n```\n\n{mistakes(mutants)}\n</details>\n"
            )
    return "\n".join(parts)


def answer_of(exercise_id: str, solution: str) -> str:
    """The lines between the marks of one exercise, moved to the left.

    The indentation of the first mark is cut from every line: 4 spaces in a function, 8 in a method. What is
    nested inside the answer stays nested.

    Args:
        exercise_id: for example "ex04b".
        solution: text of the chapter's file in `tests/exercises/solutions`.
    """
    lines = solution.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == f"{BEGIN}{exercise_id}")
    end = next(i for i in range(start, len(lines)) if lines[i].strip() == END)
    indent = len(lines[start]) - len(lines[start].lstrip())
    return "\n".join(line[indent:] for line in lines[start + 1 : end])


def mistakes(mutants: list[Path]) -> str:
    """What goes wrong most: the first docstring line of each mutant, as a list in Markdown."""
    # Not the first line of the file: that is a comment, and names the test that catches the mutant.
    rows = [
        f"- {ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))).splitlines()[0]}"
        for path in mutants
    ]
    return "Wrong answers that the tests catch:\n\n" + "\n".join(rows) + "\n"


def write() -> list[Path]:
    """Write the page if it would change; a list with its path then, else an empty one.

    A list, like that of `stubs.write_stubs`, so that the command line can print both as one.
    """
    changed = stale()
    if changed:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(make(), encoding="utf-8")
    return changed


def stale() -> list[Path]:
    """A list with the path of the page if it is not what the solutions give."""
    return [] if PAGE.exists() and PAGE.read_text(encoding="utf-8") == make() else [PAGE]

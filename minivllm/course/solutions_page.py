"""The solutions page for teachers, docs/instructor/solutions.md: every answer, folded away."""

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
            mutants = sorted((SOLUTIONS.parent / "mutants").glob(f"{exercise.id}_*.py"))
            parts.append(
                f"<details>\n<summary>{exercise.id} <code>{exercise.name}</code></summary>\n\n"
                f"```python\n{answer}\n```\n\n{mistakes(mutants)}\n</details>\n"
            )
    return "\n".join(parts)


def answer_of(exercise_id: str, solution: str) -> str:
    """The lines between the marks of one exercise, moved to the left."""
    lines = solution.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == f"{BEGIN}{exercise_id}")
    end = next(i for i in range(start, len(lines)) if lines[i].strip() == END)
    indent = len(lines[start]) - len(lines[start].lstrip())
    return "\n".join(line[indent:] for line in lines[start + 1 : end])


def mistakes(mutants: list[Path]) -> str:
    """What goes wrong most: the first lines of the mutants."""
    rows = [
        f"- {ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))).splitlines()[0]}"
        for path in mutants
    ]
    return "Wrong answers that the tests catch:\n\n" + "\n".join(rows) + "\n"


def write() -> list[Path]:
    """Write the page; a list with its path if it has changed."""
    changed = stale()
    if changed:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(make(), encoding="utf-8")
    return changed


def stale() -> list[Path]:
    """A list with the path of the page if it is not what the solutions give."""
    return [] if PAGE.exists() and PAGE.read_text(encoding="utf-8") == make() else [PAGE]

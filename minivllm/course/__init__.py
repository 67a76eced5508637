"""The course: exercises that grade the student's code.

A student edits `notebooks/exercises/chNN_*.py` and asks `python -m minivllm.course check ex04b` (in a
notebook: `%check ex04b`) whether it is right. The pieces::

    tests/exercises/solutions/ch04_block_table.py    what an author edits: every answer between two marks
            |  stubs.py: the answers become  raise NotImplementedError("ex04b")
            v
    tests/exercises/stubs/ ..., notebooks/exercises/ch04_block_table.py       what a student edits
            |  run.py: pytest in a process of its own, tests/exercises/test_ch04_block_table.py --impl student
            v
    one record per test  ->  report.py (for a person)  or  grading.py and formats.py (for a gradebook)

One switch says whose code is tested: `--impl student | reference | stub | mutant:NAME | a folder`. The tests
reach the code through the fixture `ex` only, so there is no second path by which a shipped solution could be
graded by mistake. `implementations.py` is that switch.

`project/` is the final project, an engine of the student's own: its tests run in the same way, on one file.

Nothing in the engine imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What `%load_ext minivllm.course` calls: makes `%check ex04b` available in a notebook."""
    from minivllm.course.magic import register

    register(shell)

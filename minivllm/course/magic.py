"""`%check ex04b` in a notebook: the same report as on the command line.

The tests run in a process of their own, so a check sees the file as it was last saved, even if the notebook
has imported an older version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minivllm.course.catalog import STUDENT, CourseError, parse_target
from minivllm.course.report import describe
from minivllm.course.run import run_tests

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def check(line: str) -> None:
    """Test the student's code for a chapter or an exercise: `%check 4`, `%check ex04b`.

    What the user should know is printed and not raised: a traceback in a notebook reads like a broken course.

    Args:
        line: what stands after `%check`.
    """
    try:
        target = parse_target(line)
        print(describe(target.chapter, run_tests("student", [target]), STUDENT / f"{target.chapter}.py"))
    except CourseError as error:
        print(error)


def register(shell: InteractiveShell) -> None:
    """Make `%check` known to a notebook."""
    shell.register_magic_function(check, "line", "check")

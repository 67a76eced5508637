"""A copy of the course for one submission: what its tests need to run, and nothing that answers them.

A submission runs with the rights of the teacher who grades it, so it can write to any file of the teacher,
the tests among them. So all files that the tests need are read into memory once, before the first submission
runs, and each submission gets them in a new folder that is deleted afterwards::

    minivllm/**.py  kernels/*.py  pyproject.toml
    tests/helpers*.py  tests/exercises/*.py  tests/exercises/stubs/*.py
    tests/exercises/solution_digests.txt       to recognize a copied solution; the solutions are not there
    submission/ch04_block_table.py             the student's files

What a submission does to its tests, other submissions do not see.
"""

from __future__ import annotations

import ast
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from minivllm.course.catalog import ROOT, SOLUTIONS
from minivllm.course.problems import DIGESTS, digest

PATTERNS = (
    "minivllm/**/*.py", "minivllm/**/__pycache__/*.pyc", "kernels/*.py", "pyproject.toml",
    "tests/__init__.py", "tests/helpers*.py", "tests/exercises/*.py", "tests/exercises/stubs/*.py",
)  # fmt: skip
SUBMISSION = "submission"


@dataclass(frozen=True)
class CourseFiles:
    """Path relative to the root -> (content, time of the last change) of all files that the tests need."""

    files: dict[Path, tuple[bytes, int]]

    @classmethod
    def read(cls) -> CourseFiles:
        """Read them from this checkout; about 3 MB."""
        paths = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
        files = {path.relative_to(ROOT): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
        lines = [digest(ast.parse(path.read_bytes())) for path in sorted(SOLUTIONS.rglob("*.py"))]
        files[DIGESTS.relative_to(ROOT)] = ("\n".join(lines).encode("ascii"), 0)
        return cls(files)

    def unpack(self, folder: Path, submission: dict[str, Path]) -> None:
        """Write them into the empty folder `folder`, and the files of a submission beside them.

        Args:
            submission: chapter -> path. A helper module or a conftest.py of a student stays behind.
        """
        for relative, (content, changed) in self.files.items():
            path = folder / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            # A compiled module is valid only for a source of this time; at another each run compiles anew.
            os.utime(path, ns=(changed, changed))
        (folder / SUBMISSION).mkdir()
        for path in submission.values():
            shutil.copyfile(path, folder / SUBMISSION / path.name)

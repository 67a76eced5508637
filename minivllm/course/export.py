"""The copy for students: the repository without what solves the exercises.

What is left out is listed in `.gitattributes` (export-ignore), so `git archive` leaves it out too, and
nothing has to be kept in step here. Before the copy is handed over it is tried out: its exercise tests run,
and each has to fail because nothing is written yet::

    git archive HEAD  ->  OUT/      without tests/exercises/solutions, mutants, docs/instructor, ...
    look              ->  none of the paths that .gitattributes names is there
    cut               ->  what README and docs say to teachers: <!-- teacher --> ... <!-- end -->
    try out           ->  no page names a path that was left out
                          in OUT: every exercise test ends as "not written yet"

The last step finds what the look cannot: an answer that was left in a stub. A page that names what is not
there would make `make docs` and `make test` of the copy red.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from minivllm.course.catalog import ROOT, CourseError

# Marks on lines of their own are cut with these lines, marks within a line with what stands between them.
FOR_TEACHERS = re.compile(
    r"^<!-- teacher -->\n.*?^<!-- end -->\n|<!-- teacher -->.*?<!-- end -->", re.DOTALL | re.MULTILINE
)
# Run by a Python whose working directory is the copy, so that it imports the copy's package.
TRY_OUT = """
import json
from minivllm.course.catalog import ROOT, Target, chapters
from minivllm.course.run import run_tests
records = run_tests("student", [Target(chapter, None) for chapter in chapters()])
print(json.dumps([str(ROOT), sorted({record.status for record in records}), len(records)]))
"""


def export_student(out: Path) -> str:
    """Write the copy into the new folder `out` and try it out; returns what to tell the teacher.

    Raises:
        CourseError: `out` is not empty, this is not a git checkout, or the copy holds a solution.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CourseError(f"{out} exists and is not empty. Give a new folder.")
    archive = _git("archive", "--format=tar", "HEAD")
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        # "data" refuses what a source tree has no use for: absolute paths, links that lead out, devices.
        tar.extractall(out, filter="data")
    ignored = [path for path in export_ignored() if (out / path).exists()]
    if ignored:
        raise CourseError(f"the copy at {out} still holds {', '.join(ignored)}.")
    cut_for_teachers(out)
    num_tests = try_out(out)
    # The archive is of the last commit. A teacher who has just repaired a stub would miss it in the copy.
    changed = _git("status", "--porcelain", "--untracked-files=no").decode().splitlines()
    note = f"\nNot in it: {len(changed)} changed files that are not committed." if changed else ""
    return f"Wrote {out}. Its {num_tests} exercise tests fail, as they should: nothing is written yet.{note}"


def export_ignored() -> list[str]:
    """The paths that `.gitattributes` keeps from students."""
    lines = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.endswith("export-ignore")]


def cut_for_teachers(out: Path) -> None:
    """Take out of README and docs what stands between the marks for teachers.

    Example: "Hand it in.<!-- teacher --> See `docs/instructor/`.<!-- end -->" becomes "Hand it in."
    """
    for path in pages(out):
        text = path.read_text(encoding="utf-8")
        path.write_text(FOR_TEACHERS.sub("", text), encoding="utf-8")


def pages(out: Path) -> list[Path]:
    """README and the pages of the site."""
    return [out / "README.md", *sorted((out / "docs").rglob("*.md"))]


def dead_names(out: Path) -> list[str]:
    """Where a page of the copy names a path that was left out, or a mark has no partner, as a list.

    Example: ["docs/index.md, line 45: ](instructor"].
    """
    ignored = export_ignored()
    # A link on the site is relative to its page: instructor/index.md in docs/index.md.
    links = [f"]({path.removeprefix('docs/')}" for path in ignored]
    return [
        f"{path.relative_to(out)}, line {number}: {word}"
        for path in pages(out)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for word in (*ignored, *links, "<!-- teacher -->", "<!-- end -->")
        if word in line
    ]


def try_out(out: Path) -> int:
    """Read the pages of the copy, and run its exercise tests; their number. What the run leaves is deleted.

    Raises:
        CourseError: a page names what is not there, or a test does something other than fail because nothing
            is written.
    """
    if dead := dead_names(out):
        raise CourseError(
            f"pages of the copy at {out} name what students do not get. Put that between <!-- teacher --> "
            f"and <!-- end -->:\n" + "\n".join(dead)
        )
    done = subprocess.run(
        [sys.executable, "-c", TRY_OUT], cwd=out, capture_output=True, text=True, check=False
    )
    shutil.rmtree(out / ".hypothesis", ignore_errors=True)
    for folder in list(out.rglob("__pycache__")):
        shutil.rmtree(folder)
    if done.returncode != 0:
        raise CourseError(f"the tests of the copy do not run:\n{done.stdout}{done.stderr}")
    root, statuses, num_tests = json.loads(done.stdout.splitlines()[-1])
    # If Python finds another minivllm before the copy, that one is tested.
    if Path(root) != out.resolve():
        raise CourseError(f"the copy at {out} was not tested, but {root}.")
    if statuses != ["not written yet"]:
        raise CourseError(f"in the copy at {out} some exercises are not unsolved: {', '.join(statuses)}.")
    return num_tests


def _git(*arguments: str) -> bytes:
    """Output of a git command in the repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True)
    except FileNotFoundError:
        raise CourseError("git is not installed; the copy is made with `git archive`.") from None
    except subprocess.CalledProcessError as error:
        raise CourseError(f"git {arguments[0]} failed: {error.stderr.decode().strip()}") from None
    return done.stdout

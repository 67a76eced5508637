"""Whose code is tested: the one switch behind `--impl`.

    student          notebooks/exercises                        what the learner writes
    reference        tests/exercises/solutions
    stub             tests/exercises/stubs                      each test fails: NotImplementedError
    mutant:ex04b_x   the solutions, with the definitions of tests/exercises/mutants/ex04b_x.py in their place
    alternate:ex04b_x                                           likewise, another right answer
    a folder         a submission

A mutant or alternate is one definition; the rest of its chapter comes from the solutions::

    solutions/ch04_block_table.py    blocks_needed    append_tokens            free
    mutants/ex04b_early.py                            append_tokens, wrong
    the module under test            blocks_needed    append_tokens, wrong     free

So a mutant shows one mistake and nothing else, and a test that fails has caught that mistake.

A submission is not completed from the solutions: what it lacks is missing. Before a student's file runs it is
looked at (`problems.py`).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from minivllm.course.catalog import PROJECT, PROJECT_FILE, ROOT, SOLUTIONS, STUBS, STUDENT, TESTS
from minivllm.course.problems import EMPTY, WHOLE_FILE, SubmissionError, find_problems

# Audit events whose first arguments are paths that change.
CHANGES = ("os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.rmdir", "os.chmod")
# Audit events of a process that is started. The hook here sees nothing of what another process opens.
STARTS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
)  # fmt: skip
VARIANTS = {"mutant": TESTS / "mutants", "alternate": TESTS / "alternates"}
OWN = ("minivllm", "kernels", "tests")
HIDDEN = (SOLUTIONS, *VARIANTS.values())


@dataclass(frozen=True)
class Implementation:
    """A folder of chapter files, and perhaps one file whose definitions replace theirs.

    `is_submission`: the code is a student's. Its files are looked at before they run, and the process that
    tests it cannot open the solutions, nor change the course (`guard_course`).
    """

    folder: Path
    overlay: Path | None = None
    is_submission: bool = True

    @classmethod
    def from_option(cls, option: str) -> Implementation:
        """Read the value of `--impl`. ValueError if it is none of those above.

        Examples::

            "student"             Implementation(STUDENT)
            "stub"                Implementation(STUBS, is_submission=False)
            "mutant:ex04b_early"  Implementation(SOLUTIONS, mutants/ex04b_early.py, is_submission=False)
            "submissions/ada"     Implementation(Path("submissions/ada"))
        """
        kind, _, name = option.partition(":")
        if kind in VARIANTS and name:
            overlay = VARIANTS[kind] / f"{name}.py"
            if not overlay.exists():
                raise ValueError(f"--impl {option}: there is no {overlay}.")
            return cls(SOLUTIONS, overlay, is_submission=False)
        if option in ("reference", "stub"):
            return cls({"reference": SOLUTIONS, "stub": STUBS}[option], is_submission=False)
        folder = STUDENT if option == "student" else Path(option)
        if not folder.is_dir():
            raise ValueError(
                f"--impl {option}: no such folder. Expected student, reference, stub, mutant:NAME, "
                f"alternate:NAME, or the folder of a submission."
            )
        return cls(folder)

    def load(self, chapter: str) -> ModuleType:
        """Run the chapter's file (and the overlay) and return it as a module.

        Raises:
            SubmissionError: the file is missing, empty, not Python, uses the reference, or fails on import.
        """
        path, *helpers = self.files_of(chapter)
        if self.is_submission:
            for each in (path, *helpers):
                problem = find_problems(each).get(WHOLE_FILE)
                # A helper module may well hold nothing but constants.
                if problem is not None and (each == path or problem.kind != EMPTY):
                    raise problem
        if helpers:
            sys.path.append(str(path.parent))
        # SystemExit too: a `sys.exit()` at the top of a file is a mistake in that file, not the end of the
        # run. The time limit's exception is neither of the two and passes through.
        try:
            module = _run(path)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}{_advice(error)}"
            raise SubmissionError(
                "error on import", f"{path.name} fails when it is imported: {what}"
            ) from error
        # Replaced in the module's own namespace, so functions of the chapter that call the replaced one call
        # the new one. The overlay's code sees only its own file and has to define or import what it needs.
        if self.overlay is not None:
            vars(module).update(_definitions(_run(self.overlay)))
        return module

    def files_of(self, chapter: str) -> list[Path]:
        """The file with the answers. For the project: the engine, then the files beside it."""
        if chapter not in PROJECT.values():
            return [self.folder / f"{chapter}.py"]
        inside = self.folder / "project"
        return project_files(inside if inside.is_dir() else self.folder)

    def problem_of(self, chapter: str, definition: str) -> SubmissionError | None:
        """What is wrong with one definition of a submission before it runs; None if nothing is."""
        if not self.is_submission:
            return None
        return find_problems(self.files_of(chapter)[0]).get(definition)


def project_files(folder: Path) -> list[Path]:
    """The engine of a project, even if it is missing, then the Python files beside it that are no tests."""
    others = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("test_")]
    return [folder / PROJECT_FILE, *(path for path in others if path.name != PROJECT_FILE)]


def _run(path: Path) -> ModuleType:
    """Import a file under a name of its own: two implementations must not share a module."""
    # Not `import ch04_block_table`: two folders hold files of that name, and an import of the second would
    # give the first, from `sys.modules`.
    name = f"_exercises_{abs(hash(path.resolve()))}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _advice(error: BaseException) -> str:
    """What to do about an error on import that is no fault of the file; "" for every other error."""
    if isinstance(error, ModuleNotFoundError) and error.name == "triton":
        return ". Chapter 10 needs Triton, that is Linux; on Windows, WSL 2 is one."
    return ""


def _definitions(module: ModuleType) -> dict[str, Any]:
    """Functions and classes that a module defines itself.

    Imported objects carry another module's name and stay behind; so do constants, which carry none. A Triton
    kernel is an object around the function, `fn`, that its author wrote.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if getattr(getattr(value, "fn", value), "__module__", "") == module.__name__
    }


def variant_names(kind: str) -> list[str]:
    """Names of all mutants or alternates: an exercise id, an underscore, a description."""
    return sorted(path.stem for path in VARIANTS[kind].glob("ex*.py"))


def caught_by(mutant: str) -> str:
    """The test that its first line names: `# caught by: test_name`.

    With `--impl mutants` each mutant runs with that test alone: if any test were enough, it would not be
    proved that the test which claims to catch this mistake does.

    Raises:
        ValueError: the first line is something else.
    """
    first = (VARIANTS["mutant"] / f"{mutant}.py").read_text(encoding="utf-8").splitlines()[0]
    prefix = "# caught by: "
    if not first.startswith(prefix):
        raise ValueError(f"the first line of mutant {mutant} has to be {prefix!r} and the name of a test.")
    return first.removeprefix(prefix).strip()


def guard_course(root: Path) -> None:
    """From now on no Python code here opens a solution, changes a file of the course, or starts a process.

    Alternates and mutants are solutions, too.

    It is an audit hook, because that sees imports and `os.open` as well as `open`, and the code that it
    watches cannot take it out again. A file is known by its number on the disk: a hard link is the same file
    under another name. Compiled modules may be written, or every run would compile the engine anew. What a
    library opens without Python (`torch.from_file`) the hook does not see.

    Args:
        root: the folder of the course. The running tests may be a copy of it; both are guarded.
    """
    folders = [place / folder.relative_to(ROOT) for place in {root.resolve(), ROOT} for folder in HIDDEN]
    hidden = {_number(path) for folder in folders for path in (folder, *folder.rglob("*.py"))} - {None}
    own = tuple(f"{place / name}/" for place in {root.resolve(), ROOT} for name in OWN)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            raise PermissionError("a submission must not start another process.")
        if event != "open" and event not in CHANGES:
            return
        # A number in place of a path is a file that is open already.
        for path in [each for each in arguments[:2] if isinstance(each, str | bytes)]:
            # By its number alone: torch is some thousand files, and each costs one more look at the disk.
            if hidden and _number(path) in hidden:
                raise PermissionError(f"{os.fsdecode(path)} holds a solution: it is not to be read here.")
            if event == "open" and not _writes(arguments):
                return
            real = os.path.realpath(os.fsdecode(path))
            if real.startswith(own) and "__pycache__" not in real:
                raise PermissionError(f"{real} belongs to the course: it is not to be changed here.")

    sys.addaudithook(hook)


def _number(path: Path | str | bytes) -> tuple[int, int] | None:
    """What identifies a file on the disk under every name; None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Whether the arguments of an "open" event (path, mode, flags) ask for more than reading."""
    _, mode, flags = arguments
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))

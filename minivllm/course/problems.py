"""The look at a student's file before it runs: what keeps it, or one definition in it, from being tested.

The file is parsed and not run, so a file that ends the interpreter cannot do so here::

    an empty file                                   {WHOLE_FILE: empty file}
    def free(...)                                   {WHOLE_FILE: syntax error}
    def free(...): from minivllm.block_pool ...     {"free": uses the reference}
    def rms_norm(...): return F.rms_norm(...)       {"rms_norm": uses what is to be written}

Each is reported as what it is. What runs all the same is watched (`implementations.guard_course`).
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from minivllm.course.catalog import STUBS, TESTS, exercises_of
from minivllm.course.records import COPIED, FORBIDDEN

WHOLE_FILE = ""
EMPTY = "empty file"
# In the copy that grading makes: one line per solution, its `digest`. The solutions themselves are not there.
DIGESTS = TESTS / "solution_digests.txt"
# Names that lead to the engine's modules, or to the running tests, without an `import` of them.
WAYS_AROUND = (
    "__import__", "exec", "eval", "compile", "modules", "_getframe", "__globals__", "__closure__",
    "__subclasses__",
)  # fmt: skip
# Packages of the project, and those that find a module, or an object in memory, by other means, or in another
# process, which nothing watches.
FOREIGN = (
    "minivllm", "tests", "kernels", "importlib", "runpy", "gc", "ctypes", "pytest", "_pytest", "builtins",
    "subprocess", "multiprocessing", "_posixsubprocess",
)  # fmt: skip
# Exercise -> names under which PyTorch has what the exercise asks for.
ATTENTION = (
    "scaled_dot_product_attention", "multi_head_attention_forward", "MultiheadAttention", "flex_attention",
)  # fmt: skip
TO_BE_WRITTEN = {"ex01a": ("rms_norm", "RMSNorm"), "ex01c": ATTENTION, "ex02b": ATTENTION}
# What the engine of the final project may import from the project.
PROJECT_NAMES = {
    *(f"minivllm.course.project.{name}" for name in ("GlassModel", "Limits", "Model", "ModelMisuse", "Row")),
    "minivllm.course.project.llama_model.LlamaModel",
}


class SubmissionError(Exception):
    """A file, or one definition in it, that cannot be tested. `kind` is a short name for reports."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def find_problems(path: Path) -> dict[str, SubmissionError]:
    """Definition (or `WHOLE_FILE`) -> why it cannot be tested. Reads the file without running it.

    A problem inside the definition of one exercise costs that exercise only::

        def blocks_needed(...):                            {"blocks_needed": uses the reference}
            from minivllm.block_table import cdiv          append_tokens and free are tested as usual

    The same import at the top of the file, or in a helper, is a problem of `WHOLE_FILE`.

    Args:
        path: a chapter's file, named as its stub is; it need not exist.
    """
    if not path.exists():
        message = f"there is no {path.name}. {stub_again(path.stem)}"
        return {WHOLE_FILE: SubmissionError("missing file", message)}
    try:
        tree = ast.parse(path.read_bytes())
        imports = [_imports(statement) for statement in tree.body]
        is_copy = DIGESTS.exists() and digest(tree) in DIGESTS.read_text(encoding="ascii").split()
    # ValueError: a null byte, in older versions of Python. The last two: brackets or signs nested too deeply.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        line = (getattr(error, "text", None) or "").strip()
        message = f"{path.name} is not valid Python, {where}" + (f"\n    {line}" if line else "")
        return {WHOLE_FILE: SubmissionError("syntax error", message)}
    if not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body):
        message = f"{path.name} defines nothing. {stub_again(path.stem)}"
        return {WHOLE_FILE: SubmissionError(EMPTY, message)}
    if is_copy:
        message = "the file is a copy of the solution that comes with the course."
        return {WHOLE_FILE: SubmissionError(COPIED, message)}
    allowed, own = _rules(path)
    problems = {}
    for statement, found in zip(tree.body, imports, strict=True):
        name = getattr(statement, "name", "")
        where = name if name in own else WHOLE_FILE  # a helper may be called from any exercise
        for name in sorted(found.keys() - allowed):
            problems[where] = SubmissionError(
                COPIED,
                f"{path.name}, line {found[name]}, uses {name}: that is where the answer is, or a way to "
                f"it or to the tests. Write it yourself; what the stub imports from the project is enough.",
            )
        for name, line in _written_elsewhere(statement, own).items():
            problems[where] = SubmissionError(
                FORBIDDEN,
                f"{path.name}, line {line}, uses {name}: that is what you are writing. Use sums, products, "
                f"exp, softmax and indexing.",
            )
    return problems


def _written_elsewhere(statement: ast.stmt, own: dict[str, str]) -> dict[str, int]:
    """The names in one statement at the top of a file under which PyTorch has what is to be written; lines.

    In the function of an exercise only the names of that exercise are refused; in a helper, or an import at
    the top, those of every exercise of the chapter. The student's own functions are never meant: in chapter 1
    `F.rms_norm(...)` is PyTorch's, and `rms_norm(...)` is the student's.

    Args:
        own: definition -> exercise, of this chapter.
    """
    definition = getattr(statement, "name", "")
    exercises = [own[definition]] if definition in own else own.values()
    names = {name for exercise in exercises for name in TO_BE_WRITTEN.get(exercise, ())}
    return {name: node.lineno for node in ast.walk(statement) for name in _names(node, own) if name in names}


def _names(node: ast.AST, own: dict[str, str]) -> list[str]:
    """What one node of the syntax tree names: `F.relu`, `getattr(F, "relu")`, `from F import relu`: relu."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.name.split(".")[-1] for alias in node.names]
    if isinstance(node, ast.Name):
        return [] if node.id in own else [node.id]
    if isinstance(node, ast.Attribute):
        return [node.attr]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _rules(path: Path) -> tuple[set[str], dict[str, str]]:
    """What a file may import from this project, and its exercises: definition -> id.

    The stub decides, so an author allows an import by writing it into the solution's file. A file of the
    final project has no stub.
    """
    stub = STUBS / path.name
    if not stub.exists():
        return PROJECT_NAMES, {}
    own = {exercise.definition: exercise.id for exercise in exercises_of(path.stem)}
    return set(_imports(ast.parse(stub.read_text(encoding="utf-8")))), own


def digest(tree: ast.Module) -> str:
    """A name for the code of a file: comments and blank lines make no difference, a changed name does."""
    # `ast.dump` leaves out line numbers.
    return hashlib.sha256(ast.dump(tree).encode("utf-8", "backslashreplace")).hexdigest()


def stub_again(chapter: str) -> str:
    """How to get a stub back."""
    if not chapter.startswith("ch"):
        return "Get a new one with: python -m minivllm.course project start NEW_FOLDER"
    return f"Get the stub back with: python -m minivllm.course reset {chapter[2:4]}"


def _imports(tree: ast.AST) -> dict[str, int]:
    """What is imported from this project, and ways around `import`, anywhere in `tree`; each with its line.

    Example: `from minivllm.block_table import cdiv` in line 3 and `import torch` in line 4 give
    {"minivllm.block_table.cdiv": 3}. Names count, not text: a comment that names minivllm is not an import.
    """
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}": node.lineno for alias in node.names}
        elif isinstance(node, ast.Name) and node.id in WAYS_AROUND:
            found[node.id] = node.lineno
        elif isinstance(node, ast.Attribute) and (node.attr[0] == "_" or ast.unparse(node) == "sys.modules"):
            found[node.attr] = node.lineno
    return {
        name: line
        for name, line in found.items()
        if name.split(".")[0] in FOREIGN or name.split(".")[-1] in WAYS_AROUND
    }

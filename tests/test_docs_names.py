"""Names in prose exist: what docstrings, comments, docs and notebooks call by name is still called that.

Three kinds of names between backquotes are looked up, in the text of the files (no module is imported)::

    `weights/loader.py`          a file of this project
    `scheduler.preempt`          a name in a module, or in a class of that module (an instance is often called like it)
    `KVCacheManager.fork`        a member of a class

What begins with anything else is not ours to check: `torch.float32`, `plan.scheduled`, vLLM's `v1/core/...`.
A paragraph that speaks of vLLM may name vLLM's files, and members of vLLM's classes that share a name with ours.
"""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP_FOLDERS = {"minivllm", "kernels", "tests", "docs", "notebooks", "examples"}
ROOMS = {path.name for path in (ROOT / "minivllm").iterdir() if path.is_dir() and path.name != "__pycache__"}
PYTHON = sorted([*ROOT.glob("minivllm/**/*.py"), *ROOT.glob("kernels/*.py")])
PROSE = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/src/*.py")])
FILE = re.compile(r"`([\w./-]+\.(?:py|md|js|css|ipynb))`")
DOTTED = re.compile(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`")
SUFFIXES = {"py", "md", "js", "css", "ipynb", "json", "safetensors", "gguf", "toml", "txt", "csv"}
# Modules named like the variables of many a snippet (`plan.scheduled`): looked up with their folder only.
LIKE_VARIABLES = {"model", "plan", "paper", "machine"}
OF_VLLM = re.compile(r"\bvllm\b|\bV1\b|\bv1/|v0\.1|nano|sglang|transformers|hugging", re.IGNORECASE)


# -- what exists ------------------------------------------------------------------------------------


def members(node):
    """Names that the body of a module or class defines, and what its methods set on `self`."""
    names = set()
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(child.name)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            names.add(child.id)
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            names.add(child.attr)
        elif isinstance(child, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in child.names}
    return names


@cache
def modules():
    """Name of a module (also `weights.loader`) -> the names in it; of modules of one name, all names."""
    found = {}
    for path in PYTHON:
        parts = path.relative_to(ROOT).with_suffix("").parts[path.parts[-2] != "kernels" :]
        for name in {parts[-1], ".".join(parts)}:
            found.setdefault(name, set()).update(members(ast.parse(path.read_text())))
    return found


@cache
def classes():
    """Name of a class -> (its members, the names of its bases)."""
    found = {}
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names, bases = found.setdefault(node.name, (set(), set()))
                names |= members(node)
                bases |= {ast.unparse(base).split(".")[-1] for base in node.bases}
    return found


def has_member(class_name, name):
    """Whether a class of ours or one of its bases has the member; a base of another library may have any."""
    if class_name not in classes():
        return True
    names, bases = classes()[class_name]
    return name in names or any(has_member(base, name) for base in bases)


def exists(dotted):
    """Whether `module.name`, `Class.member` or `module.Class.member` is there; True for what is not ours."""
    parts = dotted.removeprefix("minivllm.").split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module in modules() and module not in LIKE_VARIABLES:
            rest = parts[length:]
            if rest[0] not in modules()[module] and f"{module}.{rest[0]}" not in modules():
                return False
            return exists(".".join(rest)) if len(rest) > 1 else True
    return parts[0] not in classes() or has_member(parts[0], parts[1])


def file_exists(name, beside):
    """Whether a file is where its path says: from the top, from minivllm/, or beside the file that names it."""
    first = name.split("/")[0]
    if "/" in name and first not in TOP_FOLDERS | ROOMS:
        return True
    places = [ROOT / name, ROOT / "minivllm" / name, beside.parent / name]
    return any(place.exists() for place in places) or ("/" not in name and any(ROOT.glob(f"[!.]*/**/{name}")))


# -- what is said -----------------------------------------------------------------------------------


def paragraphs(path, text):
    """The prose of a file: a module's docstrings and comments, cells and comments of a notebook, a document."""
    if path.suffix == ".py":
        tree = ast.parse(text)
        pieces = [
            node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
        ]
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = {
            token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT
        }
        last = max(comments, default=0)
        pieces.append("\n".join(comments.get(line, "") for line in range(1, last + 1)))
        text = "\n\n".join(pieces)
    for piece in re.split(r"\n\s*\n", text):
        # The rows of a table are paragraphs of their own: one of them may be about vLLM.
        yield from piece.splitlines() if piece.lstrip().startswith("|") else [piece]


def wrong_names(path, text):
    """Names in the prose that nothing has."""
    wrong = []
    for paragraph in paragraphs(path, text):
        foreign = bool(OF_VLLM.search(paragraph))
        wrong += [name for name in FILE.findall(paragraph) if not (file_exists(name, path) or foreign)]
        dotted = [name for name in DOTTED.findall(paragraph) if name.rpartition(".")[2] not in SUFFIXES]
        wrong += [name for name in dotted if not (exists(name) or foreign)]
    return wrong


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in [*PYTHON, *PROSE]]
)
def test_names_in_prose_exist(path):
    """Would catch a docstring, comment, page or notebook that points to a name which was changed or moved."""
    assert wrong_names(path, path.read_text(encoding="utf-8")) == []


def test_a_name_that_is_gone_is_found():
    """Negative control: a wrong module member, class member, file in a docstring, comment, table or cell."""
    here = ROOT / "minivllm" / "scheduler.py"
    for good, bad in (
        ("scheduler.schedule", "scheduler.shedule"),
        ("Scheduler.schedule", "Scheduler._schedule_everything"),
        ("minivllm.weights.loader.load_model", "minivllm.weights.loader.load_everything"),
        ("weights/loader.py", "weights/model_loader.py"),
        ("tests/test_scheduler.py", "tests/test_no_such_thing.py"),
        ("block_pool.py", "block_swimming_pool.py"),
    ):
        for text in (
            '"""Says `{}`."""\n',
            "x = 1  # see `{}`\n",
            '"""A.\n\n    see `{}()`\n"""\n',
            "# %% [markdown]\n# `{}`\n",
        ):
            if "()" in text and good.endswith(".py"):
                continue
            assert wrong_names(here, text.format(good)) == []
            assert wrong_names(here, text.format(bad)) == [bad]
        assert wrong_names(ROOT / "README.md", f"| `{good}` | `{bad}` |") == [bad]
    assert wrong_names(here, '"""vLLM V1: `block_swimming_pool.py`."""\n') == []
    assert wrong_names(here, '"""`torch.no_such_name` is not ours."""\n') == []

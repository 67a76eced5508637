"""A copy of the folder `kernels/` with some lines changed on purpose."""

import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import minivllm.kernels.common

SOURCE = Path(minivllm.kernels.common.__file__).parent
MODULES = ("paged_attention", "prefill_attention", "reshape_and_cache", "silu_and_mul", "heuristics")


def load_copy(folder: Path, name: str, edits: list[tuple[str, str, str]]) -> SimpleNamespace:
    """Copy the package to `folder/name`, apply `edits` (file, old, new), import it; its modules by name.

    The name has to be new for each copy, because modules stay imported.
    """
    copy = folder / name
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path in copy.glob("*.py"):
        text = path.read_text()
        for file, old, new in edits:
            if path.name == file:
                assert text.count(old) == 1, f"stale edit: {old!r} is {text.count(old)} times in {file}"
                text = text.replace(old, new)
        path.write_text(text)
    sys.path.insert(0, str(folder))
    try:
        return SimpleNamespace(**{module: importlib.import_module(f"{name}.{module}") for module in MODULES})
    finally:
        sys.path.remove(str(folder))

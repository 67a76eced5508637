"""What the tests of the notebooks share: the build script as a module, a notebook run and compared with its page."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"


def load_build():
    """notebooks/build.py as a module: it is a script, not part of the package."""
    spec = importlib.util.spec_from_file_location("notebooks_build", NOTEBOOKS / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["notebooks_build"] = module
    spec.loader.exec_module(module)
    return module


build = load_build()
SOURCES = build.sources()
TIMED = [source for source in SOURCES if build.load_source(source).metadata.minivllm["timed"]]


# A number with its sign and exponent; in prose "4-8" is two numbers, not 4 and -8.
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ROUNDING = 1e-4  # numbers below it are sums of float32 in another order


def says(cell):
    """What a cell's outputs tell a reader: prints, displayed code, HTML (with the picture's description, not its bytes)."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        parts += [output.get("text", ""), data.get("text/markdown", ""), data.get("text/html", "")]
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", "\n".join(parts))


def same(stored, fresh):
    """Equal words and equal counts; numbers with a point within 2%, and both of them rounding errors."""
    if NUMBER.sub("#", stored) != NUMBER.sub("#", fresh):
        return False
    for old, new in zip(NUMBER.findall(stored), NUMBER.findall(fresh), strict=True):
        if old != new and (
            (old + new).lstrip("-").isdigit()
            or not math.isclose(float(old), float(new), rel_tol=0.02, abs_tol=ROUNDING)
        ):
            return False
    return True


def differences(stored, fresh):
    """The cells of two versions of a notebook that say different things; those with the tag "machine" may."""
    return [
        f"cell {index} says\n{says(new)}\nand its page says\n{says(old)}"
        for index, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True))
        if "machine" not in new.metadata.get("tags", []) and not same(says(old), says(new))
    ]


def run_and_compare(source, kernel=None):
    """Execute a notebook within its limits; it must say what the committed page says, and claim as much."""
    executed = build.load_source(source)
    build.execute(executed, kernel)
    committed = nbformat.read(build.notebook_path(source), as_version=4)
    different = differences(committed, executed)
    assert not different, "\n\n".join(
        [*different, f"Build it again: python notebooks/build.py {source.name[:2]}"]
    )
    assert len(build.claims_of(executed)) == len(build.claims_of(committed)) > 0

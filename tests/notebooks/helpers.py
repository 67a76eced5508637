"""What the tests of the notebooks share: the build script as a module, and one notebook run from top to bottom."""

import importlib.util
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


def run_and_compare(source):
    """Execute a notebook within its limits; it must reach as many claims as the committed page shows."""
    executed, loaded, _ = build.execute(build.load_source(source))
    committed = nbformat.read(build.notebook_path(source), as_version=4)
    assert len(build.claims_of(executed)) == len(build.claims_of(committed)) > 0
    assert any(name.startswith("minivllm/") for name in loaded)

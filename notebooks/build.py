"""Make the notebooks from their sources: `python notebooks/build.py [--check] [--changed] [NN ...]`.

Authors edit `notebooks/src/NN_name.py`, plain Python with cells between `# %%` lines (jupytext's percent
format). This script turns each into `notebooks/NN_name.ipynb`, runs it and stores it with its outputs::

    src/04_block_table.py  --jupytext-->  cells  --nbclient-->  outputs  ->  04_block_table.ipynb

`--check` finds, without running anything, a notebook which has to be built again. There are two reasons: its
cells are no longer those of the source, or code which it displays (`show_source`) is no longer that of the
module. Nothing has to be stamped for that, because cells and displayed code both stand in the notebook. A
change of any other line of the engine makes no notebook stale. That the stored numbers still hold is what
`tests/notebooks` proves: it runs every notebook and compares what it says with what is stored, but for cells
with the tag "machine", which speak of seconds or of the hardware.

Cell ids are hashes of position and text; no date is stored and no warning of the machine: building twice
changes the measured times and nothing else.

    --check     list stale notebooks and exit with 1 if there are any; nothing is run or written
    --changed   build only the stale ones
    NN          numbers of notebooks ("04 06"); none: all of them
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from minivllm.course.notebook import CLAIM_PREFIX, SHOWN, current_source, without_docstring

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CELL_SECONDS = 60
NOTEBOOK_SECONDS = 120
WIDGET = "application/vnd.jupyter.widget-view+json"  # what a progress bar leaves behind


def sources(numbers: list[str] | None = None) -> list[Path]:
    """The source files, in order; only those whose name starts with one of `numbers`, if given."""
    found = sorted((HERE / "src").glob("[0-9][0-9]_*.py"))
    if not numbers:
        return found
    unknown = [number for number in numbers if not any(path.name.startswith(f"{number}_") for path in found)]
    if unknown:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(p.stem for p in found)}.")
    return [path for path in found if path.name[:2] in numbers]


def notebook_path(source: Path) -> Path:
    """src/04_block_table.py -> 04_block_table.ipynb."""
    return HERE / f"{source.stem}.ipynb"


def load_source(source: Path) -> NotebookNode:
    """The cells of a source file, without outputs, with ids that depend on nothing but the text."""
    notebook = jupytext.read(source, fmt="py:percent")
    timed = bool(notebook.metadata.get("minivllm", {}).get("timed", False))
    for index, cell in enumerate(notebook.cells):
        digest = hashlib.sha256(f"{index}\n{cell.source}".encode()).hexdigest()
        cell["id"] = digest[:12]
        cell.metadata = NotebookNode({"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {})
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        minivllm={"timed": timed},
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def kernel_environment(timed: bool) -> dict[str, str]:
    """Environment of the kernel: fixed hash seeds, and one thread, so that several can run side by side.

    A notebook with a clock gets all cores, unless other tests are running beside it.
    """
    environment = dict(os.environ) | {"PYTHONHASHSEED": "0", "MINIVLLM_CI": "1", "MPLBACKEND": "agg"}
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    alone = timed and "PYTEST_XDIST_WORKER" not in environment
    return environment if alone else environment | {"OMP_NUM_THREADS": "1"}


def execute(notebook: NotebookNode, kernel: KernelManager | None = None) -> float:
    """Run all cells, which puts their outputs into the notebook; returns the seconds it took.

    Args:
        notebook: as `load_source` returns it.
        kernel: one that runs already, and goes on running; None: a fresh one, for this notebook alone.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message shows it.
        TimeoutError: a cell took more than `CELL_SECONDS`, or all took more than `NOTEBOOK_SECONDS`.
    """
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
        coalesce_streams=True,  # where a cell's prints are cut into messages is a matter of timing
    )
    started = time.monotonic()
    client.execute(env=kernel_environment(notebook.metadata.minivllm["timed"]))
    if kernel is not None:
        client.kc.stop_channels()
    seconds = time.monotonic() - started
    if seconds > NOTEBOOK_SECONDS:
        raise TimeoutError(f"the notebook took {seconds:.0f} s; the limit is {NOTEBOOK_SECONDS} s.")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # Warnings and progress bars speak about the machine that ran it, not to the reader.
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
            ]
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    return seconds


def claims_of(notebook: NotebookNode) -> list[str]:
    """The lines that `claim` printed."""
    texts = [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream"
    ]
    return [line for text in texts for line in text.splitlines() if line.startswith(CLAIM_PREFIX)]


def stamp(timed: bool, seconds: float) -> dict[str, Any]:
    """What the reader of a notebook may want to know about its run."""
    import torch

    return {
        "timed": timed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]},
        "seconds": round(seconds, 1),
    }


def outdated_code(notebook: NotebookNode) -> list[str]:
    """Which of the functions and classes that a notebook displays have changed since, or are gone."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    outdated = []
    for text in filter(None, (output.get("data", {}).get("text/markdown") for output in outputs)):
        shown = SHOWN.fullmatch(text)
        current = current_source(ROOT / shown["path"], shown["name"]) if shown else None
        if shown is None or current is None or shown["code"] not in (current, without_docstring(current)):
            outdated.append(text.partition("\n")[0])
    return outdated


def staleness(source: Path) -> str | None:
    """Why the notebook of this source has to be built again; None if it is up to date."""
    path = notebook_path(source)
    if not path.exists():
        return "has never been built"
    notebook, fresh = nbformat.read(path, as_version=4), load_source(source)
    stored, wanted = (
        (each.metadata.get("minivllm", {}).get("timed"), [(cell.id, cell.source) for cell in each.cells])
        for each in (notebook, fresh)
    )
    if stored != wanted:
        return "has other cells than its source (edit notebooks/src, not the notebook)"
    if changed := outdated_code(notebook):
        return f"displays code which has changed ({'; '.join(changed)})"
    return None


def build(source: Path) -> str:
    """Run one notebook and write it; returns a line about it."""
    notebook = load_source(source)
    seconds = execute(notebook)
    claims = claims_of(notebook)
    if not claims:
        raise ValueError(f"{source.name} claims nothing: a notebook needs at least one claim(...).")
    notebook.metadata.minivllm = stamp(notebook.metadata.minivllm["timed"], seconds)
    nbformat.validate(notebook)
    path = notebook_path(source)
    nbformat.write(notebook, path)
    return f"{path.name}: {len(claims)} claims, {seconds:.1f} s, {path.stat().st_size / 1024:.0f} KB"


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("numbers", nargs="*", metavar="NN", help="numbers of notebooks; none: all")
    parser.add_argument("--check", action="store_true", help="list stale notebooks, run nothing")
    parser.add_argument("--changed", action="store_true", help="build only the stale ones")
    args = parser.parse_args(argv)
    try:
        chosen = sources(args.numbers)
    except ValueError as error:
        print(error)
        return 2
    stale = {source: reason for source in chosen if (reason := staleness(source))}
    if args.check:
        for source, reason in stale.items():
            print(f"stale: {notebook_path(source).name} {reason}. Build it: make notebooks")
        return 1 if stale else 0
    for source in stale if args.changed else chosen:
        print(build(source), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m minivllm.course doctor`: can this machine do the exercises?

One line per question, and for each "no" what to do about it. Nothing is installed or changed::

      ok  Python 3.12.4
      ok  exercises can be checked here
      NO  hypothesis is not installed
          -> pip install -e ".[test,lab]"   (in the folder of the repository)
      ok  exercise files: all there
      ok  the engine writes: [ ... four token ids ... ]
      ok  weights of SmolLM2: in ~/.cache/minivllm/smollm2-135m-instruct-1
    Not all is fine; see the arrows.

The output is made to be pasted into a question: it tells a broken installation from a wrong exercise.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from minivllm.course.catalog import ROOT, STUDENT, chapters
from minivllm.course.run import NEEDS_GROUPS, can_run
from minivllm.course.stubs import missing_files, untouched

INSTALL = 'pip install -e ".[test,lab]"   (in the folder of the repository)'
# The exercises need the first five, the notebooks the others; Triton comes with torch, on Linux only.
PACKAGES = (
    "torch", "numpy", "safetensors", "pytest", "hypothesis",
    "jupyterlab", "ipywidgets", "ipython", "matplotlib",
)  # fmt: skip

Answer = tuple[bool, str, str]  # fine or not, the finding, what to do if not


def examine() -> Iterator[Answer]:
    """The questions, cheap ones first, each answered when it is asked for.

    A generator, so that `report` prints the first lines while the last question (loading torch) still runs.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    yield sys.version_info >= (3, 11), f"Python {version}", "minivllm needs Python 3.11 or newer."
    yield can_run(), f"exercises {'can' if can_run() else 'cannot'} be checked here", NEEDS_GROUPS
    for package in (*PACKAGES, "triton") if sys.platform == "linux" else PACKAGES:
        # The installed metadata, not an import: a broken torch can take the process down when it is imported.
        try:
            yield True, f"{package} {importlib.metadata.version(package)}", ""
        except importlib.metadata.PackageNotFoundError:
            yield False, f"{package} is not installed", INSTALL
    yield from _examine_files()
    yield _generate()
    yield _find_weights()


def _examine_files() -> Iterator[Answer]:
    """The student's files are there, and can be read as Python."""
    missing = missing_files()
    numbers = ", ".join(chapter[2:4] for chapter in missing)
    fix = f"python -m minivllm.course reset {missing[0][2:4]}" if missing else ""
    yield not missing, f"exercise files: missing {numbers}" if missing else "exercise files: all there", fix
    begun = [chapter for chapter in chapters() if not untouched(chapter) and chapter not in missing]
    for chapter in begun:
        path = STUDENT / f"{chapter}.py"
        # Compiled and not run: a loop without end in a student's file must not hang the doctor.
        try:
            compile(path.read_bytes(), path.name, "exec")
        except SyntaxError as error:
            yield False, f"{path.name} has a syntax error in line {error.lineno}", f"Open {path}."


def _generate() -> Answer:
    """The engine runs: a tiny random model writes a few tokens.

    8 blocks of 16 slots, a prompt of 3 tokens, 4 new ones: little work, but all the way from `LLM.generate`
    down to the attention backend. No tokenizer and no download.
    """
    try:
        from minivllm import LLM, SamplingParams
        from minivllm.weights.random_model import random_llama

        with tempfile.TemporaryDirectory() as folder:
            model = random_llama(Path(folder) / "tiny")
            llm = LLM(str(model), skip_tokenizer_init=True, num_blocks=8, max_model_len=32)
            params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
            (output,) = llm.generate([{"prompt_token_ids": [1, 2, 3]}], params, use_tqdm=False)
        return True, f"the engine writes: {list(output.outputs[0].token_ids)}", ""
    # Any fault of an installation has to become a line of the report, not a traceback.
    except Exception as error:
        return False, f"the engine fails: {type(error).__name__}: {error}", INSTALL


def _find_weights() -> Answer:
    """Whether SmolLM2 is on this machine. If not, that is no fault: the first use fetches it.

    The line is there for a room with a slow network: a teacher sees which machines still have to fetch it.
    """
    try:
        from minivllm.weights.download import builtin_folder

        folder = builtin_folder("smollm2-135m-instruct")
    # What the installation lacks, the lines above have said already.
    except ImportError as error:
        return False, f"weights of SmolLM2: not looked for, {error}", INSTALL
    if folder.is_dir():
        return True, f"weights of SmolLM2: in {folder}", ""
    return True, "weights of SmolLM2: not here yet. To fetch them (93 MB): python -m minivllm demo", ""


def report() -> bool:
    """Print all answers; whether all are fine."""
    fine = True
    print(f"Course at {ROOT}")
    for ok, finding, advice in examine():
        fine = fine and ok
        print(f"  {'ok ' if ok else 'NO '} {finding}" + (f"\n      -> {advice}" if not ok else ""))
    print("All fine." if fine else "Not all is fine; see the arrows.")
    return fine

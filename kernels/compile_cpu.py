"""How the CPU kernels of this folder are compiled, and on how many threads they run.

PyTorch's operators have threads, and the loops which Numba compiles have threads. On Linux both come from one
library, GNU's OpenMP, which keeps one number of threads for all who call it from the same thread. Numba sets
this number to that of all cores when its own threads start: when the first parallel loop is compiled, or
loaded from its cache::

    torch.set_num_threads(1)                       PyTorch 1
    import a module with a parallel loop           PyTorch 2, on two cores: as if nothing had been asked for
    the same after an import of this module        PyTorch 1, and the loop runs on 1 as well (`use_threads`)

So this module starts Numba's threads and puts PyTorch's number back, and each parallel loop is compiled by
`parallel`, which can only be had from here.

**Compiled once, until a line changes.** Numba keeps machine code on disk and makes it anew when the file of
the function has changed. But `exp` of `rows_cpu.py` becomes a part of the attention kernels, in other files:
change `exp`, and the old machine code goes on running. So the name of the folder in which it is kept is made
of all files::

    kernels/__pycache__/numba_3f1c09ab77d2/      a hash of every *_cpu.py; an edit leads to another folder

vLLM V1: `csrc/cpu/utils.cpp` (`init_cpu_threads_env`), where one library serves all loops.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import torch

FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
"""What the compiler may do to float arithmetic: reorder a sum, fuse a product with an addition. It may not
assume that numbers are finite: the maximum from which attention starts is -inf.
"""

_num_threads = torch.get_num_threads()
numba.get_num_threads()  # starts Numba's threads
if torch.get_num_threads() != _num_threads:
    torch.set_num_threads(_num_threads)

inline = numba.njit(inline="always", error_model="numpy", fastmath=FAST_MATH)
"""For a function which becomes part of the loops that call it."""


def _version() -> str:
    """A name for what all kernels of this folder say now."""
    files = sorted(Path(__file__).parent.glob("*_cpu.py"))
    return "numba_" + hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


@contextmanager
def _kept_by_version() -> Iterator[None]:
    """Where Numba keeps what is compiled meanwhile. If it cannot write there, it finds a place by itself."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(Path(before or Path(__file__).parent / "__pycache__") / _VERSION)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _forget_old_versions() -> None:
    for folder in (Path(__file__).parent / "__pycache__").glob("numba_*"):
        if folder.name != _VERSION:
            shutil.rmtree(folder, ignore_errors=True)


_VERSION = _version()
_forget_old_versions()


def kept(signatures: Any, **options: Any) -> Callable[..., Any]:
    """For a function which is compiled where it is defined, and kept on disk.

    While it runs, other threads of Python run too.
    """

    def compile_now(function: Callable[..., Any]) -> Callable[..., Any]:
        with _kept_by_version():
            return numba.njit(signatures, nogil=True, cache=True, error_model="numpy", **options)(function)

    return compile_now


def parallel(signatures: str | list[str], **options: Any) -> Callable[..., Any]:
    """As `kept`, for a function whose `prange` loops are divided among the threads."""
    return kept(signatures, parallel=True, **options)


def use_threads(num_threads: int) -> int:
    """Run the kernels on `num_threads` threads from now on, or on as many as Numba has; returns how many."""
    num_threads = min(num_threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(num_threads)
    return num_threads

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

vLLM V1: `csrc/cpu/utils.cpp` (`init_cpu_threads_env`), where one library serves all loops.
"""

from collections.abc import Callable
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


def parallel(signatures: str | list[str], **options: Any) -> Callable[..., Any]:
    """For a function whose `prange` loops are divided among the threads.

    It is compiled where it is defined, and kept on disk. While it runs, other threads of Python run too.
    """
    return numba.njit(signatures, parallel=True, nogil=True, cache=True, error_model="numpy", **options)


def use_threads(num_threads: int) -> int:
    """Run the kernels on `num_threads` threads from now on, or on as many as Numba has; returns how many."""
    num_threads = min(num_threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(num_threads)
    return num_threads

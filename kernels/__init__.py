"""The Triton kernels of minivllm, one file a kernel, in the order of a lesson.

This package imports torch and triton, never minivllm. Importing `kernels` itself imports neither: the
name collides with Hugging Face's PyPI package `kernels`, which transformers probes for by asking for
its version (5.0 to 5.12) or by importing it (5.23). A version and an import without side effects keep
both satisfied.

Without a GPU the kernels run in Triton's interpreter. Triton reads `TRITON_INTERPRET` when a kernel is
*decorated*, and for its own library functions when `triton` is first imported, so the default has to be
set before that import. This file is the one place that every path to a kernel passes through first.
"""

import os
import sys

__version__ = "0.0.0"


def _gpu_present() -> bool:
    """Whether CUDA can be used. Imports torch (which does not import triton)."""
    import torch

    return torch.cuda.is_available()


def use_interpreter_without_gpu() -> None:
    """Choose Triton's interpreter where no GPU is present; call before the first `import triton`.

    Raises:
        RuntimeError: triton was already imported without `TRITON_INTERPRET`, so half of it would be
            interpreted and half compiled.
    """
    if "TRITON_INTERPRET" in os.environ or _gpu_present():
        return
    if "triton" in sys.modules:
        raise RuntimeError(
            "triton was imported before kernels, without TRITON_INTERPRET=1, and there is no GPU. "
            "Import kernels first, or set TRITON_INTERPRET=1 before starting Python."
        )
    os.environ["TRITON_INTERPRET"] = "1"

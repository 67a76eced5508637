"""The kernels of minivllm, one file a kernel, in the order of a lesson.

Read them in this order; each adds one idea to the one before:

| file | idea it adds |
|---|---|
| `silu_and_mul.py` | a program, a tile, a mask |
| `rms_norm.py` | a reduction over a row; float32 inside, the caller's dtype outside |
| `rotary_embedding.py` | two tiles of one row; writing in place |
| `reshape_and_cache.py` | scatter: the address comes out of a tensor (`slot_mapping`) |
| `copy_blocks.py` | the copy of copy-on-write |
| `paged_attention_naive.py` | gather through the block table; the online softmax, one head a program |
| `online_softmax.py` | the same for a tile of queries: what both kernels below share |
| `paged_attention.py` | heads grouped for `tl.dot`; tiles decoupled from blocks; split-KV |
| `combine.py` | merging the partial softmaxes of split-KV |
| `prefill_attention.py` | many queries a sequence: prefill, chunked prefill and mixed batches |
| `paged_attention_cpu.py` | the same on a laptop: plain loops, compiled by Numba |
| `heuristics.py` | tile sizes and splits for each chip, as plain if/else |
| `common.py` | importing Triton the right way; argument checks whose errors teach |

Beside each kernel stands its twin in plain torch (`*_reference`), slow and obvious, which is its oracle.

This package imports torch and triton (for the CPU kernel numba), never minivllm. Importing `kernels` itself
imports none of them: the name collides with Hugging Face's PyPI package `kernels`, which transformers probes
for by asking for its version (5.0 to 5.12) or by importing it (5.23). A version and an import without side
effects keep both satisfied. For the same reason nothing is exported here: write
`from kernels.paged_attention import paged_attention`.

Without a GPU the kernels run in Triton's interpreter. Triton reads `TRITON_INTERPRET` when a kernel is
*decorated*, and for its own library functions when `triton` is first imported. `kernels/common.py`, which
every kernel file imports Triton through, takes care of both moments.
"""

import os

__version__ = "0.0.0"


def _gpu_present() -> bool:
    """Whether CUDA can be used. Imports torch (which does not import triton)."""
    import torch

    return torch.cuda.is_available()


def use_interpreter_without_gpu() -> None:
    """Choose Triton's interpreter where no GPU is present and nobody has chosen yet.

    `kernels/common.py` calls this before it imports Triton; a test suite may call it earlier. A value of
    `TRITON_INTERPRET` that is already set wins: 0 keeps the compiler on a machine without a GPU, which is
    how the kernels are compiled ahead of time for chips that are not there.
    """
    if "TRITON_INTERPRET" not in os.environ and not _gpu_present():
        os.environ["TRITON_INTERPRET"] = "1"

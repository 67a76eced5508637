"""The kernels of minivllm, one file per kernel, in the order of a lesson.

Read them in this order; each adds one idea to the one before. The files are in the folder `kernels/`::

| file | idea it adds |
|---|---|
| `silu_and_mul.py` | a program, a tile, a mask |
| `rms_norm.py` | a reduction over a row; float32 inside, the caller's dtype outside |
| `rotary_embedding.py` | two tiles of one row; writing in place |
| `reshape_and_cache.py` | scatter: the address comes out of a tensor (`slot_mapping`) |
| `paged_attention_naive.py` | gather through the block table; the online softmax, one head per program |
| `online_softmax.py` | the same for a tile of queries: what both kernels below share |
| `paged_attention.py` | heads grouped for `tl.dot`; tiles decoupled from blocks; split-KV |
| `combine.py` | merging the partial softmaxes of split-KV |
| `prefill_attention.py` | many queries per sequence: prefill, chunked prefill and mixed batches |
| `compile_cpu.py` | how the loops of a CPU kernel are compiled, and on how many threads they run |
| `paged_attention_cpu.py` | the same on a laptop: plain loops, compiled by Numba |
| `prefetch_cpu.py` | asking for memory before it is needed |
| `prefill_attention_cpu.py` | prefill there: two matrix products on what the queries may see |
| `rows_cpu.py` | norm, rotation and activation there: one pass each, and an exp made for vectors |
| `matmul_cpu.py` | the matrix product there: a tile of the result in registers, the weights in panels |
| `bfloat16_cpu.py` | half the bytes: numbers widened where they are read, and products of pairs |
| `decode_step_cpu.py` | the order of these calls compiled too: all layers of a decode step in one |
| `linear_cpu.py` | that product and PyTorch's four, and the fastest one found by measurement |
| `heuristics.py` | tile sizes and splits for each chip, as plain if/else |
| `common.py` | importing Triton the right way; argument checks whose errors teach |

Beside each kernel stands its twin in plain torch (`*_reference`), slow and obvious, which is its oracle. The
kernels import torch and triton (the CPU kernels: numba), and nothing of minivllm.

They are imported as `minivllm.kernels.paged_attention`, although their folder is `kernels/` at the top
level: this module gives the folder a second name. The first one, `kernels`, is Hugging Face's: a package of
that name is on PyPI, and transformers imports it where it is installed. The folder has no `__init__.py`, and
Python prefers any real package to a folder without one, so both live side by side::

    checkout or editable install     minivllm/kernels.py    kernels/*.py
    wheel                            minivllm/kernels.py    minivllm/kernels/*.py

vLLM V1: `csrc/`, `vllm/v1/attention/ops/`.
"""

from pathlib import Path

_INSTALLED = Path(__file__).with_suffix("")
# What makes a module a package: where Python looks for `minivllm.kernels.<name>`.
__path__ = [str(_INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "kernels")]

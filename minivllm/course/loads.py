"""Which keys and values a kernel loads: seen in Triton's interpreter, for chapter 10.

A kernel touches memory by address only, so what it has read cannot be told from its output. The interpreter
carries out each load in Python. While `record` watches, a function of ours stands around that method, and
notes the addresses that the mask lets through. From an address follows the row of the cache::

    key_cache (8 blocks, 4 slots, 2 KV heads, 16) float32      a row is 16 numbers, 64 bytes
    address 640 behind its first byte                          row 10: block 1, slot 1, KV head 0

    >>> output, loaded = record(paged_attention_naive, query, key_cache, value_cache, ...)
    >>> loaded["K"][0]
    ((0, 0, 0), 0, 40)        program (0, 0, 0), first turn of its loop, row 40

It works in the interpreter only, and so without a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

Loads = dict[str, list[tuple[tuple[int, int, int], int, int]]]
""" "K" and "V" -> (program, turn of its loop, row of the cache) of each row loaded, in order."""


def record(
    kernel: Callable[..., Tensor],
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *arguments: Any,
    **options: Any,
) -> tuple[Tensor, Loads]:
    """Run a kernel of this project in the interpreter; -> its output, and what it has loaded of K and V.

    The caches (B, S, Hkv, D) are contiguous, and not the same memory.
    """
    loaded: Loads = {"K": [], "V": []}
    turns: Counter[tuple[tuple[int, int, int], str]] = Counter()
    original = interpreter_builder.create_masked_load

    def load(pointers: Any, mask: Any, *others: Any) -> Any:
        program, addresses = interpreter_builder.grid_idx, pointers.data[mask.data].astype("int64")
        for name, cache in (("K", key_cache), ("V", value_cache)):
            row_bytes = cache.shape[-1] * cache.element_size()
            rows = (addresses - cache.data_ptr()) // row_bytes
            # A row is many addresses, one for each of its numbers; elsewhere are the query and the tables.
            rows = list(dict.fromkeys(rows[(rows >= 0) & (rows < cache.nbytes // row_bytes)].tolist()))
            loaded[name] += [(program, turns[program, name], row) for row in rows]
            turns[program, name] += bool(rows)
        return original(pointers, mask, *others)

    with patch.object(interpreter_builder, "create_masked_load", load):
        return kernel(query, key_cache, value_cache, *arguments, **options), loaded

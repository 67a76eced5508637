"""Paged attention by the project's own kernels, which read the blocks in place; the choice of a backend.

=========  =====================================  ==============================================
backend    decode (one query per sequence)        prefill (several)
=========  =====================================  ==============================================
`torch`    gather, then SDPA                      SDPA
`numba`    `kernels/paged_attention_cpu.py`       `kernels/prefill_attention_cpu.py`
`triton`   `kernels/paged_attention.py`           `kernels/prefill_attention.py`
=========  =====================================  ==============================================

`auto` takes `triton` on a GPU and, on a CPU, `numba` for float32 and bfloat16 where Numba is installed, else
`torch`. The backends differ in speed and in rounding, not in meaning; each is tested against the same oracle.
With bfloat16, `numba` reads weights and KV cache in that type and computes in float32 (`Build.activations`).

Paper: section 4.1.
vLLM V1: `v1/attention/selector.py`, `v1/attention/backends/triton_attn.py` and `cpu_attn.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from minivllm.attention import AttentionBackend, AttentionMetadata
from minivllm.backends.attention_torch import TorchAttention
from minivllm.block_table import cdiv
from minivllm.config import CHOICES, ModelConfig, require_choice
from minivllm.kv_cache import KVCache

FEW_QUERIES = 8
"""Up to so many queries of a sequence are computed one by one: a decode, or drafts that are verified."""
FEW_KEYS = 64
"""So are those of a sequence with at most so many tokens: a call for each sequence would cost more."""


NUMBA_DTYPES = {torch.float32: "float32", torch.bfloat16: "uint16"}
"""Types of K and V which the compiled loops read -> what Numba calls them."""


@dataclass(frozen=True)
class Prefill:
    """The queries of one sequence: its last tokens."""

    # Their rows among the step's T tokens.
    rows: slice
    # (b,) int64: the sequence's blocks.
    blocks: np.ndarray
    # n: keys which the last query may see.
    num_keys: int


@dataclass(frozen=True)
class NumbaPlan:
    """A step as the two kernels for CPUs want it: prefills one by one, and all other queries together."""

    prefills: list[Prefill]
    # For the copies of a prefill, as large as the largest one needs.
    scratch: tuple[np.ndarray, ...]
    # (N,) int64: the places of the other queries among the step's T tokens.
    tokens: np.ndarray
    # (N, max_blocks) int32
    block_tables: np.ndarray
    # (N,) int32
    seq_lens: np.ndarray


class NumbaAttention:
    """The compiled loops of `paged_attention_cpu.py` and, for prefills, of `prefill_attention_cpu.py`."""

    name = "numba"

    def __init__(
        self, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if torch.device(device).type != "cpu" or dtype not in NUMBA_DTYPES:
            raise ValueError(
                f"attention_backend 'numba' is for float32 and bfloat16 on a CPU, not for {dtype} on "
                f"{device}. Use 'torch', or 'triton' on a GPU."
            )
        if find_spec("numba") is None:
            raise ValueError("attention_backend 'numba' needs the package numba: pip install numba.")
        # Imported here and not above: it takes a third of a second, and only this backend needs it.
        from minivllm.kernels.compile_cpu import use_threads
        from minivllm.kernels.paged_attention_cpu import compile_paged_attention_cpu, deal_out
        from minivllm.kernels.prefill_attention_cpu import make_scratch, prefill_attention_cpu

        self._block_size = block_size
        self._heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.decode_kernel = compile_paged_attention_cpu(config.head_dim, NUMBA_DTYPES[dtype])
        self._prefill = prefill_attention_cpu
        self._deal_out, self._use_threads, self._make_scratch = deal_out, use_threads, make_scratch

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Tell the sequences with few queries from the others, and deal these queries out to the threads.

        The decode kernel knows one query per row. A few queries of one sequence are as many rows with the
        same block table, each with the keys up to itself: 3 queries, the last of 10 tokens, see 8, 9 and 10.
        """
        # As many threads as PyTorch uses for the operators before and after.
        num_threads = self._use_threads(torch.get_num_threads())
        starts, seq_lens = metadata.query_start_loc.numpy(), metadata.seq_lens.numpy()
        block_tables = metadata.block_tables.numpy()
        counts = np.diff(starts)
        few = (counts <= FEW_QUERIES) | (seq_lens <= FEW_KEYS)
        prefills = []
        for sequence in np.flatnonzero(~few).tolist():
            blocks = block_tables[sequence, : cdiv(int(seq_lens[sequence]), self._block_size)]
            rows = slice(int(starts[sequence]), int(starts[sequence + 1]))
            prefills.append(Prefill(rows, blocks.astype(np.int64), int(seq_lens[sequence])))
        most = int(counts[~few].max(initial=0)), int(seq_lens[~few].max(initial=0))
        scratch = self._make_scratch(*most, *self._heads)

        tokens = np.flatnonzero(np.repeat(few, counts))  # (N,)
        sequences = np.repeat(np.arange(len(counts)), counts)[tokens]  # (N,)
        num_keys = (seq_lens[sequences] - (starts[sequences + 1] - 1 - tokens)).astype(np.int32)
        order = self._deal_out(num_keys, num_threads)
        batch = tokens[order], block_tables[sequences[order]], num_keys[order]
        return replace(metadata, plan=NumbaPlan(prefills, scratch, *batch))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: KVCache,
        layer: int,
        metadata: AttentionMetadata,
        scale: float,
    ) -> Tensor:
        """See `AttentionBackend.forward`; `metadata` must come from this backend's `prepare`."""
        plan = metadata.plan
        assert isinstance(plan, NumbaPlan), "call prepare(metadata) once per step, forward once per layer"
        kv_cache.write(layer, key, value, metadata.slot_mapping)
        result = query.new_empty(query.shape)
        # NumPy arrays of the same memory: nothing is copied.
        queries, output = query.numpy(), result.numpy()
        cache = as_array(kv_cache.key[layer]), as_array(kv_cache.value[layer])
        for prefill in plan.prefills:
            batch = prefill.blocks, prefill.num_keys, np.float32(scale), plan.scratch
            self._prefill(queries[prefill.rows], *cache, *batch, output[prefill.rows])
        if len(plan.tokens):
            batch = plan.tokens, plan.block_tables, plan.seq_lens
            self.decode_kernel(queries, *cache, *batch, np.float32(scale), output)
        return result


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor as a NumPy array of the same memory; NumPy has no bfloat16, and sees its bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


class TritonAttention:
    """Paged attention from the project's own Triton kernels, which read the blocks where they are.

    Nothing is gathered, so there is nothing to plan. Without a GPU the kernels run in Triton's
    interpreter: right, and thousands of times slower, so only for tests.
    """

    name = "triton"

    def __init__(self) -> None:
        # Imported here and not above: Triton is optional, and a plain CPU run never loads it.
        from minivllm.kernels.paged_attention import paged_attention
        from minivllm.kernels.prefill_attention import prefill_attention
        from minivllm.kernels.reshape_and_cache import reshape_and_cache

        self._write, self._decode, self._prefill = reshape_and_cache, paged_attention, prefill_attention

    def prepare(self, metadata: AttentionMetadata) -> AttentionMetadata:
        """Nothing to do: the kernels read the block tables themselves."""
        return metadata

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: KVCache,
        layer: int,
        metadata: AttentionMetadata,
        scale: float,
    ) -> Tensor:
        """See `AttentionBackend.forward`."""
        key_cache, value_cache = kv_cache.key[layer], kv_cache.value[layer]
        self._write(key, value, key_cache, value_cache, metadata.slot_mapping)
        tables, seq_lens = metadata.block_tables, metadata.seq_lens
        # A step of decodes alone: a kernel that splits long sequences among programs. As soon as one sequence
        # has more than one query, all sequences go through the prefill kernel, in a single launch.
        if metadata.max_query_len == 1:
            return self._decode(query, key_cache, value_cache, tables, seq_lens, scale)
        starts = metadata.query_start_loc
        return self._prefill(query, key_cache, value_cache, tables, seq_lens, starts, scale)


def make_attention_backend(
    name: str, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device | str
) -> AttentionBackend:
    """Make the backend called `name`; see the table above for "auto"."""
    require_choice("attention_backend", name, CHOICES["attention_backend"])
    on_cpu = torch.device(device).type == "cpu"
    if name == "auto":
        numba_fits = on_cpu and dtype in NUMBA_DTYPES and find_spec("numba") is not None
        name = "numba" if numba_fits else "torch" if on_cpu else "triton"
    if name == "triton":
        return TritonAttention()
    backend = NumbaAttention if name == "numba" else TorchAttention
    return backend(config, block_size, dtype, device)

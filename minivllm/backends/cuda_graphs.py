"""CUDA graphs: a decode step is recorded once for each batch size, then replayed in one call.

The host tells a GPU what to do one kernel at a time, some microseconds per kernel. A decode step of a model
with 32 layers is about 400 kernels, most of them shorter than the time it takes to launch them, so the GPU
waits for Python. A CUDA graph is a recording of all these launches: a replay costs the host a single call.

A recording freezes what the host decided: how many rows, and at which addresses. So the inputs of every step
are copied to the same place, the *buffers*, and steps with nearly as many sequences share a recording. Such a
group of batch sizes is a bucket. A step of 5 sequences runs as the bucket of 8, with three rows of padding::

                    5 sequences          | padding
    input_ids       a   b   c   d   e    | .   .   .      whatever the step before left there
    positions       6   2   9   3   0    | .   .   .
    slot_mapping    10  34  57  3   20   | -1  -1  -1     the kernel skips -1: nothing is written
    seq_lens        7   3   10  4   1    | 0   0   0      no key is read, the output is 0

Nothing the host decides may depend on the lengths, or a replay would repeat the decision of another step. The
Triton kernels keep to this rule: they choose their launch by the shape of the block tables, which are as wide
here as the longest possible sequence needs. Prefill is not recorded: its shapes differ from step to step, and
the kernels of a long prompt run long enough for the host to keep ahead.

The first step of a bucket runs without a graph, which also compiles the kernels; then it is recorded. (vLLM
records all buckets at start, so that no user waits for a recording: `aot/warm_up.py`.)

vLLM V1: `vllm/v1/worker/gpu_model_runner.py` (`capture_model`), `vllm/compilation/cuda_graph.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minivllm.attention import AttentionMetadata
from minivllm.block_table import cdiv
from minivllm.kv_cache import KVCache
from minivllm.model import Model

LARGEST_BUCKET = 256
"""Steps with more sequences are launched kernel by kernel: their kernels run longer than a launch takes."""

Step = Callable[[], Tensor]
"""A forward pass without arguments: it reads the buffers and returns (bucket, hidden)."""


def can_replay(device: torch.device, attention_backend: str, enforce_eager: bool) -> bool:
    """Whether decode steps are recorded: only `triton` decides nothing by the lengths."""
    return device.type == "cuda" and attention_backend == "triton" and not enforce_eager


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then every 8 until all of `max_num_seqs` fit: at most 7 rows of padding.

    Example: bucket_sizes(20) == [1, 2, 4, 8, 16, 24].
    """
    return [1, 2, 4, *range(8, min(cdiv(max_num_seqs, 8) * 8, LARGEST_BUCKET) + 1, 8)]


class CudaGraphCapture:
    """Records steps; all recordings share one pool of memory, since only one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """Record what `step` asks the GPU to do, without doing it; return the function that does it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class DecodeGraphs:
    """The recorded decode steps of one model, and the buffers they read.

    Args:
        model: a model whose attention backend decides nothing by values (`triton`).
        kv_cache: recorded with the model; it must not be replaced.
        max_num_seqs: the most sequences a step usually has.
        max_model_len: the longest sequence, in tokens.
        capture: records a step. The tests give one that needs no GPU.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        max_num_seqs: int,
        max_model_len: int,
        capture: Callable[[Step], Step] | None = None,
    ) -> None:
        self.model, self.kv_cache = model, kv_cache
        self._capture = capture or CudaGraphCapture()
        self._sizes = bucket_sizes(max_num_seqs)
        self._replays: dict[int, Step] = {}
        self.num_replays = 0

        rows, device = self._sizes[-1], kv_cache.key[0].device
        width = cdiv(max_model_len, kv_cache.block_size)
        self._input_ids = torch.zeros(rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._metadata = AttentionMetadata(
            slot_mapping=torch.full((rows,), -1, dtype=torch.int64, device=device),
            block_tables=torch.zeros(rows, width, dtype=torch.int32, device=device),
            seq_lens=torch.zeros(rows, dtype=torch.int32, device=device),
            query_start_loc=torch.arange(rows + 1, dtype=torch.int32, device=device),
            max_query_len=1,
            max_seq_len=max_model_len,
        )

    def fits(self, metadata: AttentionMetadata) -> bool:
        """Whether this is a step to replay: one new token for each sequence, and not too many sequences."""
        return metadata.max_query_len == 1 and len(metadata.seq_lens) <= self._sizes[-1]

    def run(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        """The forward pass of a step that `fits`.

        Args:
            input_ids: (R,), one token for each sequence.
            positions: (R,).
            metadata: of this step, with R rows.

        Returns:
            (R, hidden), valid until the next call, as the next replay writes to the same memory.
        """
        num_rows = len(input_ids)
        bucket = self._sizes[bisect_left(self._sizes, num_rows)]
        self._stage(input_ids, positions, metadata, bucket)
        replay = self._replays.get(bucket)
        if replay is not None:
            self.num_replays += 1
            return replay()[:num_rows]
        return self._record(bucket)[:num_rows]

    def record_all(self) -> int:
        """Record every bucket that has not been met yet, on padding alone; -> how many they are.

        `run` does the same one by one, at the price of a request that waits for it.
        """
        missing = [bucket for bucket in self._sizes if bucket not in self._replays]
        for bucket in missing:
            self._metadata.slot_mapping[:bucket].fill_(-1)
            self._metadata.seq_lens[:bucket].fill_(0)
            self._record(bucket)
        return len(missing)

    def _record(self, bucket: int) -> Tensor:
        """Run a step of `bucket` rows as always, which compiles what it needs, and record it."""
        step = partial(self._forward, bucket)
        hidden = step()
        self._replays[bucket] = self._capture(step)
        return hidden

    def _stage(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata, bucket: int) -> None:
        """Copy a step's inputs into the buffers and make the other rows of its bucket padding."""
        num_rows, width = metadata.block_tables.shape
        self._input_ids[:num_rows].copy_(input_ids)
        self._positions[:num_rows].copy_(positions)
        buffers = self._metadata
        buffers.slot_mapping[:num_rows].copy_(metadata.slot_mapping)
        buffers.block_tables[:num_rows, :width].copy_(metadata.block_tables)
        buffers.seq_lens[:num_rows].copy_(metadata.seq_lens)
        # Left as they were, these rows would overwrite the KV of sequences that have gone on since.
        buffers.slot_mapping[num_rows:bucket].fill_(-1)
        buffers.seq_lens[num_rows:bucket].fill_(0)

    def _forward(self, bucket: int) -> Tensor:
        """The model on the first `bucket` rows of the buffers; (bucket, hidden)."""
        buffers = self._metadata
        metadata = replace(
            buffers,
            slot_mapping=buffers.slot_mapping[:bucket],
            block_tables=buffers.block_tables[:bucket],
            seq_lens=buffers.seq_lens[:bucket],
            query_start_loc=buffers.query_start_loc[: bucket + 1],
        )
        return self.model(self._input_ids[:bucket], self._positions[:bucket], self.kv_cache, metadata)

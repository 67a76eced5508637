"""The matrix-product bound: how fast the engine would be if nothing but its matrix products took time.

A tokens-per-second figure says as much about the machine as about the engine. The bound takes the machine
out. Definition: for each step of a run, take the number of rows T it put through the layers and the number N
of rows it needed logits for. Add up, over the steps::

    bound = sum over steps of  layers(T) + head(N)         share = bound / wall time of the run

`layers(T)` is the time of the model's own Linear layers (QKV, O, gate/up, down of every layer, with their
own weights) on T rows of random input; `head(N)` that of `compute_logits`. Both are measured in the same
process as the run, in turns with it, at a few row counts, and interpolated in between. So a share of 60%
means: 40% of the time went to attention, norms, sampling, scheduling and Python.

The bound is one of *this* implementation's products, not of the hardware: faster kernels for them raise it
(`layers.Linear` tells of four layouts of the same weight), and with it the demand on everything else. So that
shares can be compared with those of programs that use `nn.Linear` as it comes, `plain_seconds` is the same
bound with `F.linear` on weights as they are stored. Example, SmolLM2-135M in float32 on two
quiet cores with transposed weights, milliseconds::

    rows          1     8    32    64       so 32 sequences that decode together need at least 71 ms a
    layers       19    41    53    76       step: 451 tokens a second, whatever else is tuned
    head          5    15    18    24

There is no counterpart in vLLM; the idea is the roofline's.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.bench.steps import StepRecord, projections
from minivllm.llama import LlamaForCausalLM

ROW_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
_CALLS, _MAX_SECONDS = 5, 0.5  # one measurement: the median of up to 5 calls in about half a second


def bracket(rows: Iterable[int]) -> list[int]:
    """The row counts to measure, so that each of `rows` is one of them or lies between two neighbours.

    Example: [32, 33, 100] needs 32, 48, 96 and 128. Beyond the last of `ROW_COUNTS`, the largest itself.
    """
    rows = set(rows)
    needed: set[int] = set()
    for count in rows:
        index = bisect_left(ROW_COUNTS, count)
        if index == len(ROW_COUNTS):
            needed |= {ROW_COUNTS[-1], max(rows)}
        elif ROW_COUNTS[index] == count:
            needed.add(count)
        else:
            needed |= {ROW_COUNTS[index - 1], ROW_COUNTS[index]}
    return sorted(needed)


def interpolate(table: dict[int, float], rows: int) -> float:
    """Linear between the two neighbours in `table`."""
    if rows in table:
        return table[rows]
    counts = sorted(table)
    index = bisect_left(counts, rows)
    if index in (0, len(counts)):
        raise ValueError(f"{rows} rows are outside of what was measured, {counts[0]} to {counts[-1]}.")
    low, high = counts[index - 1], counts[index]
    return table[low] + (table[high] - table[low]) * (rows - low) / (high - low)


def median_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Median time of a few calls, after one to warm up."""

    def call() -> float:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    call()
    times: list[float] = []
    while len(times) < _CALLS and sum(times) < _MAX_SECONDS:
        times.append(call())
    return statistics.median(times)


class MatmulBound:
    """Times of the matrix products of one model, at the row counts that a run had.

    Args:
        model: the engine's own, so that weights, layout and kernels are those it uses.
        steps: a run whose row counts are to be covered. Greedy runs repeat themselves exactly.
    """

    def __init__(self, model: LlamaForCausalLM, steps: list[StepRecord]) -> None:
        self.model = model
        self.layer_rows = bracket(step.num_tokens for step in steps)
        self.head_rows = bracket(step.num_samples for step in steps if step.num_samples)
        self._layers: dict[int, list[float]] = defaultdict(list)
        self._head: dict[int, list[float]] = defaultdict(list)

    @torch.inference_mode()
    def measure(self) -> None:
        """One measurement at every row count. Call it between the runs of a benchmark."""
        device = self.model.model.embed_tokens.device
        for rows in self.layer_rows:
            self._layers[rows].append(median_seconds(self._layers_function(rows), device))
        for rows in self.head_rows:
            hidden = self._random(rows, self.model.config.hidden_size)
            self._head[rows].append(median_seconds(lambda x=hidden: self.model.compute_logits(x), device))

    @torch.inference_mode()
    def plain_seconds(self, rows: int) -> float:
        """The products of one decode step of `rows` sequences by `F.linear`, on weights of their own.

        All layers get their own random weights: one that is used thirty times over would stay in the cache,
        and the products would look twice as fast as they are. They take the room of the model once more.
        """
        linears = [*projections(self.model), self.model.lm_head]
        weights = [self._random(*linear.weight.shape) for linear in linears]
        inputs = {size: self._random(rows, size) for size in {weight.shape[1] for weight in weights}}

        def run() -> None:
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

        return median_seconds(run, self.model.model.embed_tokens.device)

    def _layers_function(self, rows: int) -> Callable[[], None]:
        """All projections of all layers, in the order of a forward pass, each on its own kind of input."""
        config = self.model.config
        hidden = self._random(rows, config.hidden_size)  # (T, hidden)
        attended = self._random(rows, config.num_attention_heads * config.head_dim)  # (T, Hq * D)
        inner = self._random(rows, config.intermediate_size)  # (T, inner)

        def run() -> None:
            for layer in self.model.model.layers:
                layer.self_attn.qkv_proj(hidden)
                layer.self_attn.o_proj(attended)
                layer.mlp.gate_up_proj(hidden)
                layer.mlp.down_proj(inner)

        return run

    def _random(self, rows: int, columns: int) -> Tensor:
        weight = self.model.model.embed_tokens
        return torch.randn(rows, columns, dtype=weight.dtype, device=weight.device)

    # -- results ------------------------------------------------------------------------------------

    def tables(self) -> tuple[dict[int, float], dict[int, float]]:
        """(layers, head): seconds by row count, medians over the measurements."""
        layers = {rows: statistics.median(times) for rows, times in self._layers.items()}
        head = {rows: statistics.median(times) for rows, times in self._head.items()}
        return layers, head

    def seconds(self, steps: list[StepRecord]) -> float:
        """The bound: seconds of the matrix products of these steps."""
        layers, head = self.tables()
        total = 0.0
        for step in steps:
            total += interpolate(layers, step.num_tokens)
            total += interpolate(head, step.num_samples) if step.num_samples else 0.0
        return total

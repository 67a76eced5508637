"""The matrix-product bound: how fast the engine would be if nothing but its matrix products took time.

A tokens-per-second figure says as much about the machine as about the engine. The bound takes the machine
out. For each step of a run, take the number of rows T that went through the layers and the number N of rows
that needed logits, and add up, over the steps::

    bound = sum over steps of  layers(T) + head(N)         share = bound / wall time of the run

`layers(T)` is the time of the model's own Linear layers (QKV, O, gate/up, down of every layer, with their
own weights) on T rows of random input; `head(N)` that of `compute_logits`. Both are measured in the same
process as the run, in turns with it, at a few row counts, and interpolated in between. So a share of 60%
means: 40% of the time went to attention, norms, sampling, scheduling and Python.

The bound is one of *this* implementation's products, not of the hardware: faster kernels for them raise it,
and with it the demand on everything else. For comparison with programs that use `nn.Linear` as it comes,
`plain_seconds` is the same with `F.linear` on weights as they are stored. Example, SmolLM2-135M in float32 on
two cores of an Intel Xeon (Cascade Lake) with transposed weights, milliseconds::

    rows          1     8    32    64       so 32 sequences that decode together need at least 71 ms per
    layers       19    41    53    76       step: 451 tokens per second, whatever else is tuned
    head          5    15    18    24

There is no counterpart in vLLM; the idea is the roofline's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from minivllm.bench.steps import StepRecord, projections
from minivllm.layers import Linear
from minivllm.llama import LlamaForCausalLM

ROW_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
SECONDS = 0.2  # of one measurement, at least


def bracket(rows: Iterable[int]) -> list[int]:
    """The row counts to measure, so that each of `rows` is one of them or lies between two neighbours.

    Example: [32, 33, 100] needs 32, 48, 96 and 128. Beyond the last of `ROW_COUNTS`, the largest itself.
    """
    rows = set(rows)
    largest = max(rows, default=0)
    counts = [*ROW_COUNTS, largest] if largest > ROW_COUNTS[-1] else ROW_COUNTS
    needed = {counts[bisect_left(counts, each)] for each in rows}
    needed |= {counts[bisect_left(counts, each) - 1] for each in rows if each not in ROW_COUNTS}
    return sorted(needed)


def interpolate(table: dict[int, float], rows: int) -> float:
    """Linear between the two neighbours in `table`.

    Raises:
        ValueError: `rows` is below the smallest or above the largest row count in `table`.
    """
    counts = sorted(table)
    if not counts[0] <= rows <= counts[-1]:
        raise ValueError(f"{rows} rows are outside of what was measured, {counts[0]} to {counts[-1]}.")
    return float(np.interp(rows, counts, [table[count] for count in counts]))


def median_seconds(function: Callable[[], object]) -> float:
    """Median time per call, warmed up and synchronized by PyTorch's own timer."""
    timer = Timer("call()", globals={"call": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS).median


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
        for rows in self.layer_rows:
            self._layers[rows].append(median_seconds(self.layers_function(rows)))
        for rows in self.head_rows:
            hidden = self._random(rows, self.model.config.hidden_size)
            self._head[rows].append(median_seconds(lambda x=hidden: self.model.compute_logits(x)))

    @torch.inference_mode()
    def plain_seconds(self, rows: int) -> float:
        """The products of one decode step of `rows` sequences by `F.linear`, on weights of their own.

        All layers get their own random weights: one that is used thirty times over would stay in the cache,
        and the products would look twice as fast as they are. They take the room of the model once more.
        """
        linears = [*projections(self.model), self.model.lm_head]
        weights = [self._random(*linear.weight.shape) for linear in linears]
        inputs = self._inputs(linears, rows)

        def run() -> None:
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

        return median_seconds(run)

    def layers_function(self, rows: int) -> Callable[[], None]:
        """All projections of all layers, in the order of a forward pass."""
        linears = projections(self.model)
        inputs = self._inputs(linears, rows)

        def run() -> None:
            for linear in linears:
                linear(inputs[linear.weight.shape[1]])

        return run

    def _inputs(self, linears: list[Linear], rows: int) -> dict[int, Tensor]:
        """Random (rows, columns) for each number of columns that a weight (out, columns) has."""
        return {
            columns: self._random(rows, columns) for columns in {each.weight.shape[1] for each in linears}
        }

    def _random(self, rows: int, columns: int) -> Tensor:
        weight = self.model.model.embed_tokens
        return torch.randn(rows, columns, dtype=weight.dtype, device=weight.device)

    def tables(self) -> tuple[dict[int, float], dict[int, float]]:
        """(layers, head): seconds by row count, medians over the measurements."""
        layers = {rows: float(np.median(times)) for rows, times in self._layers.items()}
        return layers, {rows: float(np.median(times)) for rows, times in self._head.items()}

    def seconds(self, steps: list[StepRecord]) -> float:
        """The bound: seconds of the matrix products of these steps."""
        layers, head = self.tables()
        return sum(interpolate(layers, step.num_tokens) for step in steps) + sum(
            interpolate(head, step.num_samples) for step in steps if step.num_samples
        )

"""Looking at the engine's steps from outside: where their time goes, and what the matrix products alone take.

The engine has no timers: readers would have to read past them. A benchmark wraps the engine's methods while
it looks, and puts them back afterwards. The parts do not overlap, so "rest" is the total minus all of them::

    with profile_steps(engine) as steps:         # a percent or so slower; `record_steps` costs a microsecond
        llm.generate(...)
    steps.records[0]                             # TimedStep(num_tokens=1830, num_samples=16, seconds=2.1)

    engine.step() = schedule | input tensors | attention.prepare | for each layer: linears, attention |
                    compute_logits | sampler | update_from_output | make_outputs

The matrix-product bound takes the machine out of a figure: T rows of a step went through the layers' own
Linear modules, N rows needed logits, and both are measured in turns with the run, at a few row counts::

    bound = sum over steps of  layers(T) + head(N)         share = bound / wall time of the run

    rows          1     8    32    64       ms, SmolLM2-135M, float32, two cores of a Cascade Lake Xeon:
    layers       19    41    53    76       32 sequences that decode together need at least 71 ms per step,
    head          5    15    18    24       451 tokens per second, whatever else is tuned

What is missing to 100% went to attention, norms, sampling, scheduling and Python. vLLM V1: `vllm/profiler/`;
`VLLM_TORCH_PROFILER_DIR`. The idea of the bound is the roofline's.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from minivllm.backends.compiled_steps import CompiledSteps
from minivllm.bench.report import table
from minivllm.engine import LLMEngine
from minivllm.layers import Linear
from minivllm.llama import LlamaForCausalLM
from minivllm.scheduler_output import SchedulerOutput

if TYPE_CHECKING:
    from minivllm.kernels.decode_step_cpu import Batch, Scratch

Method = Callable[..., Any]

MATMUL, ATTENTION, SAMPLING = "matrix products", "attention", "sampling"
SCHEDULING, INPUTS, REST = "scheduling and bookkeeping", "input tensors", "rest"
PARTS = (MATMUL, ATTENTION, SAMPLING, SCHEDULING, INPUTS, REST)
ROW_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
SECONDS = 0.2  # of one measurement, at least


def replaced(owner: object, name: str, wrap: Callable[[Method], Method]) -> AbstractContextManager[Any]:
    """Put `wrap(method)` in the place of `owner.name`, on this one object, while the block lasts."""
    return patch.object(owner, name, wrap(getattr(owner, name)))


def watching_plans(engine: LLMEngine, look: Callable[[SchedulerOutput], None]) -> AbstractContextManager[Any]:
    """Call `look` with each plan on its way to the runner, when all blocks of the step are held."""

    def wrap(execute_model: Method) -> Method:
        def watched(plan: SchedulerOutput) -> object:
            look(plan)
            return execute_model(plan)

        return watched

    return replaced(engine.runner, "execute_model", wrap)


@dataclass(frozen=True)
class TimedStep:
    """One step: rows through the layers (T), rows that needed logits, seconds; in a profile also by part."""

    num_tokens: int
    num_samples: int
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computed one token: none was still reading its prompt."""
        return self.num_tokens == self.num_samples


@dataclass
class Steps:
    """What is recorded of a run; `blocks` are those written to, `parts` the seconds of the running step."""

    records: list[TimedStep] = field(default_factory=list)
    blocks: set[int] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    parts: dict[str, float] = field(default_factory=dict)

    def timed(self, part: str) -> Callable[[Method], Method]:
        """A wrapper that adds the time of every call to `part`."""

        def wrap(function: Method) -> Method:
            def timed(*args: object, **kwargs: object) -> object:
                start = time.perf_counter()
                result = function(*args, **kwargs)
                self.parts[part] += time.perf_counter() - start
                self.calls[part] += 1
                return result

            return timed

        return wrap

    def timed_layers(self, run_layers: Method) -> Method:
        """The compiled layers: the time of a call, divided as the cycles that it counted."""

        def timed(batch: Batch, scratch: Scratch) -> None:
            scratch.cycles[:] = 0
            start = time.perf_counter()
            run_layers(batch, scratch)
            seconds = time.perf_counter() - start
            products, attention, total = scratch.cycles.tolist()
            for part, cycles in ((MATMUL, products), (ATTENTION, attention)):
                self.parts[part] += seconds * cycles / max(total, 1)
                self.calls[part] += 1

        return timed


@contextmanager
def record_steps(engine: LLMEngine) -> Iterator[Steps]:
    """Record the steps that run inside the block."""
    steps, plans = Steps(), []

    def wrap(step: Method) -> Method:
        def recorded() -> object:
            steps.parts = defaultdict(float)
            start = time.perf_counter()
            outputs = step()
            seconds = time.perf_counter() - start
            plan = plans.pop()  # it lives only inside `step`: caught on its way to the runner
            num_samples = sum(row.num_samples > 0 for row in plan.scheduled)
            record = TimedStep(plan.num_scheduled_tokens, num_samples, seconds, dict(steps.parts))
            steps.records.append(record)
            steps.blocks.update(block_id for row in plan.scheduled for block_id in row.block_ids)
            return outputs

        return recorded

    with watching_plans(engine, plans.append), replaced(engine, "step", wrap):
        yield steps


def projections(model: LlamaForCausalLM) -> list[Linear]:
    """The matrix products of all layers in order, without the head: four each, as q, k, v are one product."""
    pairs = [(layer.self_attn, layer.mlp) for layer in model.model.layers]
    return [x for a, m in pairs for x in (a.qkv_proj, a.o_proj, m.gate_up_proj, m.down_proj)]


@contextmanager
def profile_steps(engine: LLMEngine) -> Iterator[Steps]:
    """Time the parts of the steps inside the block; not on a GPU, where calls return before they are done."""
    if engine.device.type != "cpu":
        raise ValueError(
            f"--profile times calls, which means nothing on {engine.device}: use torch.profiler."
        )
    runner, scheduler, model = engine.runner, engine.scheduler, engine.runner.model
    # None of these methods calls another one in the list, or its time would count twice.
    targets: list[tuple[object, str, str]] = [
        (scheduler, "schedule", SCHEDULING),
        (scheduler, "update_from_output", SCHEDULING),
        (engine.output_processor, "note_scheduled", SCHEDULING),
        (engine.output_processor, "read", SCHEDULING),
        (engine.output_processor, "make_outputs", SCHEDULING),
        (runner, "prepare_inputs", INPUTS),
        (runner, "sampler", SAMPLING),
        (model.attention, "prepare", ATTENTION),
        (model.attention, "forward", ATTENTION),
        (model, "compute_logits", MATMUL),
        *((linear, "forward", MATMUL) for linear in projections(model)),
    ]
    with record_steps(engine) as steps, ExitStack() as stack:
        for owner, name, part in targets:
            stack.enter_context(replaced(owner, name, steps.timed(part)))
        if isinstance(runner.decode_steps, CompiledSteps):
            stack.enter_context(replaced(runner.decode_steps, "run_layers", steps.timed_layers))
        yield steps


def milliseconds_per_step(records: Sequence[TimedStep]) -> dict[str, float]:
    """Mean by part; "rest" is what no timer covers: 10 steps of 500 ms in all, 400 of them timed, rest 10."""
    covered = {part: sum(record.parts.get(part, 0.0) for record in records) for part in PARTS}
    covered[REST] = sum(record.seconds for record in records) - sum(covered.values())
    return {part: 1e3 * seconds / max(len(records), 1) for part, seconds in covered.items()}


def profile_table(records: Sequence[TimedStep]) -> str:
    """Mean time per step by part: all steps, and those that decode only."""
    decode = [record for record in records if record.is_decode]
    columns = [milliseconds_per_step(each) for each in (records, decode)]
    heads = [f"all {len(records)} steps, ms", "", f"{len(decode)} decode steps, ms", ""]
    rows: list[list[str]] = [["mean time per step", *heads]]
    for part in (*PARTS, "total"):
        cells = []
        for column in columns:
            total = sum(column.values())
            value = column.get(part, total)
            cells += [f"{value:.2f}", f"{value / total if total else 0:.1%}"]
        rows.append([f"  {part}", *cells])
    return table(rows)


def bracket(rows: Iterable[int]) -> list[int]:
    """The row counts to measure, so that each of `rows` is one of them or between two neighbours: [32, 33,
    100] needs 32, 48, 96 and 128. Beyond the last of `ROW_COUNTS`, the largest itself.
    """
    rows = set(rows)
    largest = max(rows, default=0)
    counts = [*ROW_COUNTS, largest] if largest > ROW_COUNTS[-1] else ROW_COUNTS
    needed = {counts[bisect_left(counts, each)] for each in rows}
    needed |= {counts[bisect_left(counts, each) - 1] for each in rows if each not in ROW_COUNTS}
    return sorted(needed)


def interpolate(table: dict[int, float], rows: int) -> float:
    """Linear between the two neighbours in `table`; ValueError outside of it."""
    counts = sorted(table)
    if not counts[0] <= rows <= counts[-1]:
        raise ValueError(f"{rows} rows are outside of what was measured, {counts[0]} to {counts[-1]}.")
    return float(np.interp(rows, counts, [table[count] for count in counts]))


def median_seconds(function: Callable[[], object]) -> float:
    """Median time per call, warmed up and synchronized by PyTorch's own timer."""
    timer = Timer("call()", globals={"call": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=SECONDS).median


class MatmulBound:
    """Times of the engine's own matrix products at the row counts of one run; greedy runs are alike."""

    def __init__(self, model: LlamaForCausalLM, steps: list[TimedStep]) -> None:
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

    def keep(self, measurements: Sequence[int]) -> None:
        """Forget all measurements but these, counted from 0."""
        for times in (self._layers, self._head):
            times.update({rows: [values[i] for i in measurements] for rows, values in times.items()})

    @torch.inference_mode()
    def plain_seconds(self, rows: int) -> float:
        """One decode step by `F.linear`, each layer with its own random weights, so that none is in the
        cache.
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
        return {columns: self._random(rows, columns) for columns in {x.weight.shape[1] for x in linears}}

    def _random(self, rows: int, columns: int) -> Tensor:
        weight = self.model.model.embed_tokens
        return torch.randn(rows, columns, dtype=weight.dtype, device=weight.device)

    def tables(self) -> tuple[dict[int, float], dict[int, float]]:
        """(layers, head): seconds by row count, medians over the measurements."""
        layers = {rows: float(np.median(times)) for rows, times in self._layers.items()}
        return layers, {rows: float(np.median(times)) for rows, times in self._head.items()}

    def seconds(self, steps: list[TimedStep]) -> float:
        """The bound: seconds of the matrix products of these steps."""
        layers, head = self.tables()
        products = [interpolate(layers, step.num_tokens) for step in steps]
        return sum(products) + sum(interpolate(head, each.num_samples) for each in steps if each.num_samples)

"""Looking at the engine's steps from outside: `record_steps` and `profile_steps`.

The engine has no timers, and should have none: they would be code to read past. Here its methods are wrapped
while a benchmark looks, and put back afterwards::

    with record_steps(engine) as steps:          # how many rows, how long: a microsecond per step
        llm.generate(...)
    steps.records[0]                             # StepRecord(num_tokens=1830, num_samples=16, seconds=2.1)

    with profile_steps(engine) as steps:         # where the time goes: a percent or so slower
        llm.generate(...)
    print(profile_table(steps.records))

The parts do not overlap, so "rest" is the total minus all of them::

    engine.step() = schedule | input tensors | attention.prepare | for each layer: linears, attention |
                    compute_logits | sampler | update_from_output | make_outputs

vLLM V1: `vllm/profiler/`; `VLLM_TORCH_PROFILER_DIR`.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from minivllm.bench.report import table
from minivllm.engine import LLMEngine
from minivllm.layers import Linear
from minivllm.llama import LlamaForCausalLM
from minivllm.scheduler_output import SchedulerOutput

Method = Callable[..., Any]

# The names under which the report prints them.
MATMUL, ATTENTION, SAMPLING = "matrix products", "attention", "sampling"
SCHEDULING, INPUTS, REST = "scheduling and bookkeeping", "input tensors", "rest"
PARTS = (MATMUL, ATTENTION, SAMPLING, SCHEDULING, INPUTS, REST)


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
class StepRecord:
    """One step.

    Attributes:
        num_tokens: rows that went through the layers (T).
        num_samples: rows that needed logits, one per sequence that has caught up with its tokens.
        seconds: of `engine.step()`, scheduling and bookkeeping included.
        parts: seconds by part, in a profile; a part that did not run is not in it.
    """

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
    """What is recorded of a run.

    Attributes:
        records: the steps in order.
        blocks: ids of all KV blocks that the run wrote to: the KV memory that was really touched.
        calls: by part, over all steps of a profile.
        parts: seconds by part of the step that is running.
    """

    records: list[StepRecord] = field(default_factory=list)
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
            record = StepRecord(plan.num_scheduled_tokens, num_samples, seconds, dict(steps.parts))
            steps.records.append(record)
            steps.blocks.update(block_id for row in plan.scheduled for block_id in row.block_ids)
            return outputs

        return recorded

    with watching_plans(engine, plans.append), replaced(engine, "step", wrap):
        yield steps


# -- where the time goes ----------------------------------------------------------------------------


def projections(model: LlamaForCausalLM) -> list[Linear]:
    """The matrix products of all layers, in the order of a forward pass; the head is not among them.

    Four for each layer: q, k and v are one product, and so are gate and up.
    """
    linears = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linears += [attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj]
    return linears


@contextmanager
def profile_steps(engine: LLMEngine) -> Iterator[Steps]:
    """Time the parts of the steps that run inside the block.

    Raises:
        ValueError: on a GPU, where a call returns before its work is done and a clock around it means
            nothing.
    """
    if engine.device.type != "cpu":
        raise ValueError(
            f"--profile times calls, which means nothing on {engine.device}: use torch.profiler."
        )
    runner, scheduler, model = engine.runner, engine.scheduler, engine.runner.model
    # (object, method, part). None of them calls another one in the list, or its time would count twice.
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
        yield steps


def milliseconds_per_step(records: Sequence[StepRecord]) -> dict[str, float]:
    """The mean by part; "rest" is what no timer covers: norms, rotation, activation, residual path.

    Example, 10 steps of 50 ms, 300 ms in matrix products and 100 ms in attention: 30 and 10 ms per step,
    rest 10.
    """
    covered = {part: sum(record.parts.get(part, 0.0) for record in records) for part in PARTS}
    covered[REST] = sum(record.seconds for record in records) - sum(covered.values())
    return {part: 1e3 * seconds / max(len(records), 1) for part, seconds in covered.items()}


def profile_table(records: Sequence[StepRecord]) -> str:
    """Mean time per step by part: all steps, and beside them those that decode only.

    Steps in which a prompt is read are few and long; the time per token that a user waits for is that of the
    others.
    """
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

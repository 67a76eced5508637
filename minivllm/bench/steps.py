"""Looking at the engine's steps from outside: `record_steps` and `profile_steps`.

The engine has no timers, and should have none: they would be code to read past. Here its methods are wrapped
while a benchmark looks, and put back afterwards::

    with record_steps(engine) as steps:          # how many rows, how long: a microsecond a step
        llm.generate(...)
    steps.records[0]                             # StepRecord(num_tokens=1830, num_samples=16, seconds=2.1)

    with profile_steps(engine) as profile:       # where the time goes: a percent or so slower
        llm.generate(...)
    print(profile.table())

What is added up (`profile_steps`; the parts do not overlap, so "rest" is the total minus all of them)::

    engine.step() = schedule | input tensors | attention.prepare | for each layer: linears, attention |
                    compute_logits | sampler | update_from_output | make_outputs

vLLM V1: `vllm/profiler/`; `VLLM_TORCH_PROFILER_DIR`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from minivllm.engine import LLMEngine
from minivllm.layers import Linear
from minivllm.llama import LlamaForCausalLM
from minivllm.scheduler_output import SchedulerOutput

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]

# The names under which the report prints them.
MATMUL, ATTENTION, SAMPLING = "matrix products", "attention", "sampling"
SCHEDULING, INPUTS, REST = "scheduling and bookkeeping", "input tensors", "rest"
PARTS = (MATMUL, ATTENTION, SAMPLING, SCHEDULING, INPUTS, REST)


@contextmanager
def replaced(owner: object, name: str, wrap: Wrapper) -> Iterator[None]:
    """Put `wrap(method)` in the place of `owner.name`, on this one object, for as long as the block lasts.

    Args:
        owner: the object; other objects of its class keep the method they have.
        name: of the method.
        wrap: gets the bound method, returns what stands in for it.

    `setattr` puts the wrapper into the object's own dictionary, which Python searches before the class. So
    putting it back means deleting it, unless the object had an attribute of that name before.
    """
    was_own = name in vars(owner)
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        if was_own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)  # the method of the class shows again


# -- how many rows, how long ------------------------------------------------------------------------


@dataclass(frozen=True)
class StepRecord:
    """One step: tokens computed, tokens sampled, wall time of `engine.step()`.

    Attributes:
        num_tokens: rows that went through the layers (T).
        num_samples: rows that needed logits.
        seconds: of `engine.step()`, scheduling and bookkeeping included.
    """

    num_tokens: int
    num_samples: int
    seconds: float

    @property
    def is_decode(self) -> bool:
        """Whether every sequence computed one token: nobody was still reading a prompt."""
        return self.num_tokens == self.num_samples


@dataclass
class StepRecords:
    """All steps of a run, and every KV block that was written in it.

    Attributes:
        records: in the order of the steps.
        blocks: block ids; how many they are is the KV memory that was really touched.
        _plan: the plan of the step that is running, from `execute_model` to the end of `step`.
    """

    records: list[StepRecord] = field(default_factory=list)
    blocks: set[int] = field(default_factory=set)
    _plan: SchedulerOutput | None = None


@contextmanager
def record_steps(engine: LLMEngine) -> Iterator[StepRecords]:
    """Record the steps that run inside the block."""
    steps = StepRecords()

    def around_execute(execute_model: Callable[..., Any]) -> Callable[..., Any]:
        # The plan lives only inside `step`: caught here, on its way to the runner.
        def keep_plan(plan: SchedulerOutput) -> Any:
            steps._plan = plan
            return execute_model(plan)

        return keep_plan

    def around_step(step: Callable[..., Any]) -> Callable[..., Any]:
        def timed_step() -> Any:
            start = time.perf_counter()
            outputs = step()
            seconds = time.perf_counter() - start
            scheduled = steps._plan.scheduled
            # Rows that have caught up: one row of logits each, however many tokens are drawn from it.
            num_samples = sum(row.num_samples > 0 for row in scheduled)
            steps.records.append(StepRecord(steps._plan.num_scheduled_tokens, num_samples, seconds))
            for row in scheduled:
                steps.blocks.update(row.block_ids)
            return outputs

        return timed_step

    with replaced(engine.runner, "execute_model", around_execute), replaced(engine, "step", around_step):
        yield steps


# -- where the time goes ----------------------------------------------------------------------------


@dataclass
class StepProfile:
    """Seconds by part, for each step of a run.

    Attributes:
        recorded: rows and wall time of each step.
        parts: seconds by part, a dictionary a step; a part that did not run is not in it.
        calls: by part, over all steps.
        _running: the entry of `parts` for the step that is running.
    """

    recorded: StepRecords
    parts: list[dict[str, float]] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _running: dict[str, float] = field(default_factory=dict)

    def add(self, part: str) -> Wrapper:
        """A wrapper that adds the time of every call to `part`."""

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                start = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                # Also a call that raises has taken its time.
                finally:
                    seconds = time.perf_counter() - start
                    self._running[part] = self._running.get(part, 0.0) + seconds
                    self.calls[part] += 1

            return timed

        return wrap

    def add_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of `engine.step`: a new entry of `parts`."""

        def separate_step() -> Any:
            self._running = {}
            outputs = step()
            self.parts.append(self._running)
            return outputs

        return separate_step

    def milliseconds_a_step(self, decode_only: bool = False) -> dict[str, float]:
        """The mean by part; "rest" is what no timer covers: norms, rotation, activation, residual path.

        Example, 10 steps of 50 ms, 300 ms in matrix products and 100 ms in attention: 30 and 10 ms a step,
        rest 10.

        Args:
            decode_only: leave out the steps in which a prompt was read. They are few and long, and the time
                of a token that a user waits for is the time of the others.
        """
        steps = [
            (record, parts)
            for record, parts in zip(self.recorded.records, self.parts, strict=True)
            if record.is_decode or not decode_only
        ]
        covered = {part: sum(parts.get(part, 0.0) for _, parts in steps) for part in PARTS if part != REST}
        covered[REST] = sum(record.seconds for record, _ in steps) - sum(covered.values())
        return {part: 1e3 * seconds / max(len(steps), 1) for part, seconds in covered.items()}

    def table(self) -> str:
        """A table for people: all steps, and beside them those that decode only."""
        num_decode = sum(record.is_decode for record in self.recorded.records)
        heads = f"all {len(self.parts)} steps", f"{num_decode} decode steps"
        lines = [f"{'mean time of a step':<28}{heads[0]:>20}{heads[1]:>24}"]
        columns = [self.milliseconds_a_step(), self.milliseconds_a_step(decode_only=True)]
        totals = [sum(column.values()) for column in columns]
        for part in (*PARTS, "total"):
            cells = ""
            for column, total, width in zip(columns, totals, (10, 14), strict=True):
                value = column.get(part, total)
                cells += f"{value:{width}.2f} ms {value / total if total else 0:6.1%}"
            lines.append(f"  {part:<26}{cells}")
        return "\n".join(lines)


def projections(model: LlamaForCausalLM) -> list[Linear]:
    """The matrix products of all layers, in the order of a forward pass; the head is not among them.

    Four for each layer: q, k and v are one product, and so are gate and up.
    """
    return [
        linear
        for layer in model.model.layers
        for linear in (
            layer.self_attn.qkv_proj,
            layer.self_attn.o_proj,
            layer.mlp.gate_up_proj,
            layer.mlp.down_proj,
        )
    ]


@contextmanager
def profile_steps(engine: LLMEngine) -> Iterator[StepProfile]:
    """Time the parts of the steps that run inside the block. They do not overlap.

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
    ]
    targets += [(linear, "forward", MATMUL) for linear in projections(model)]
    with ExitStack() as stack:
        profile = StepProfile(stack.enter_context(record_steps(engine)))
        for owner, name, part in targets:
            stack.enter_context(replaced(owner, name, profile.add(part)))
        stack.enter_context(replaced(engine, "step", profile.add_step))
        yield profile

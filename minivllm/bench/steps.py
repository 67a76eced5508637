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
                    compute_logits | sampler | update_from_output | process

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
    """Seconds and calls by part, over all steps of a run.

    Attributes:
        num_steps: calls of `engine.step`.
        total: seconds in them.
        seconds, calls: by part; a part that never ran is not in them.
    """

    num_steps: int = 0
    total: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, part: str) -> Wrapper:
        """A wrapper that adds the time of every call to `part`."""

        def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                start = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                # Also a call that raises has taken its time.
                finally:
                    self.seconds[part] += time.perf_counter() - start
                    self.calls[part] += 1

            return timed

        return wrap

    def add_total(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The wrapper of `engine.step`."""

        def timed_step() -> Any:
            start = time.perf_counter()
            outputs = step()
            self.total += time.perf_counter() - start
            self.num_steps += 1
            return outputs

        return timed_step

    def milliseconds_a_step(self) -> dict[str, float]:
        """By part; "rest" is what no timer covers: norms, rotation, activation, residuals, embedding.

        Example, 10 steps of 50 ms, 300 ms in matrix products and 100 ms in attention: 30 and 10 ms a step,
        rest 10.
        """
        covered = {part: self.seconds[part] for part in PARTS if part != REST}
        covered[REST] = self.total - sum(covered.values())
        return {part: 1e3 * seconds / max(self.num_steps, 1) for part, seconds in covered.items()}

    def table(self) -> str:
        """A table for people."""
        parts = self.milliseconds_a_step()
        total = sum(parts.values())
        lines = [f"where a step's time goes ({self.num_steps} steps)      ms   share"]
        for part, value in (*parts.items(), ("total", total)):
            lines.append(f"  {part:<36} {value:8.2f}  {value / total if total else 0:6.1%}")
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
    profile = StepProfile()
    runner, scheduler, model = engine.runner, engine.scheduler, engine.runner.model
    # (object, method, part). None of them calls another one in the list, or its time would count twice.
    targets: list[tuple[object, str, str]] = [
        (scheduler, "schedule", SCHEDULING),
        (scheduler, "update_from_output", SCHEDULING),
        (engine.output_processor, "note_scheduled", SCHEDULING),
        (engine.output_processor, "process", SCHEDULING),
        (runner, "prepare_inputs", INPUTS),
        (runner, "sampler", SAMPLING),
        (model.attention, "prepare", ATTENTION),
        (model.attention, "forward", ATTENTION),
        (model, "compute_logits", MATMUL),
    ]
    targets += [(linear, "forward", MATMUL) for linear in projections(model)]
    with ExitStack() as stack:
        for owner, name, part in targets:
            stack.enter_context(replaced(owner, name, profile.add(part)))
        stack.enter_context(replaced(engine, "step", profile.add_total))
        yield profile

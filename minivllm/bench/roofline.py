"""The roofline of this machine, and the parts of a decode step as points below it.

A part of a step moves bytes and does operations. A machine bounds both, so a part which does I operations per
byte gets at most I times the bandwidth, and at most the peak::

    operations/s (log)
        peak       ________________________
                  /             x  matrix products: I grows with the rows, which share the weights
                 /
                /                                 I = operations / bytes
         x     /    attention: each sequence reads keys and values of its own, so I stays where it is
              /
        x    /      the rest: norms, activation, sampling, and Python, which is no work at all
            +--------------------------  operations per byte (log)

How far a point lies below the roof is what could still be gained there; `rest` lies lowest, and is short.

Peak and bandwidth are measured here, on as many threads as the engine has, and not taken from a data sheet:
the fastest product found, and the sum of numbers which no cache holds. Source: Williams, Waterman and
Patterson, "Roofline: an insightful visual performance model" (2009). vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from minivllm.bench.evaluation.step_time import Work, work_of
from minivllm.bench.steady import bandwidth_meter
from minivllm.bench.steps import (
    ATTENTION,
    MATMUL,
    REST,
    MatmulBound,
    median_seconds,
    milliseconds_per_step,
    profile_steps,
    projections,
    watching_plans,
)
from minivllm.config import ModelConfig
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY_ROWS = 256
"""Rows of a product which is bound by arithmetic."""


@dataclass(frozen=True)
class Roof:
    """What the machine can do at most, per second."""

    num_bytes: float
    operations: float

    def limit(self, intensity: float) -> float:
        """Operations per second at `intensity` operations per byte."""
        return min(self.operations, intensity * self.num_bytes)


@dataclass(frozen=True)
class Part:
    """One part of a mean decode step."""

    name: str
    operations: float
    num_bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.num_bytes

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


@torch.inference_mode()
def measure_roof(llm: LLM) -> Roof:
    """Bandwidth, and the faster of two products: PyTorch's of squares, the engine's own of many rows."""
    square = torch.ones(1024, 1024)
    model = llm.llm_engine.runner.model
    weights = sum(linear.weight.numel() for linear in projections(model))
    rows = MatmulBound(model, []).layers_function(MANY_ROWS)
    return Roof(
        num_bytes=1e9 * bandwidth_meter(torch.device("cpu"))(),
        operations=max(
            2 * 1024**3 / median_seconds(lambda: square @ square),
            2 * MANY_ROWS * weights / median_seconds(rows),
        ),
    )


def step_roofline(llm: LLM, prompt: Sequence[int], row_counts: Sequence[int]) -> tuple[Figure, str]:
    """A figure of decode steps with so many equal sequences, and its numbers in a sentence."""
    from minivllm.viz.roofline import roofline_figure

    roof = measure_roof(llm)
    points: dict[str, list[tuple[str, float, float]]] = {}
    for rows in row_counts:
        for part in decode_parts(llm, [prompt] * rows, 16):
            text = f"{rows} row{'s' if rows > 1 else ''}: {1e3 * part.seconds:.1f} ms"
            points.setdefault(part.name, []).append((text, part.intensity, part.rate / 1e9))
    bandwidth, peak = roof.num_bytes / 1e9, roof.operations / 1e9
    texts = [
        f"{name}, {text} ({1e9 * rate / roof.limit(intensity):.0%} of the roof)"
        for name, row in points.items()
        for text, intensity, rate in row
    ]
    sentence = f"At most {bandwidth:.0f} GB/s and {peak:.0f} GFLOP/s. A decode step: {'; '.join(texts)}."
    return roofline_figure(bandwidth, peak, points), sentence


def decode_parts(llm: LLM, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Part]:
    """Generate greedily on the idle engine; -> products, attention and the rest of a mean decode step."""
    plans: list[Work] = []
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
    engine = llm.llm_engine
    with (
        profile_steps(engine) as steps,
        watching_plans(engine, lambda plan: plans.append(work_of(plan))),
    ):
        llm.generate([{"prompt_token_ids": list(each)} for each in prompts], params, use_tqdm=False)
    decodes = [(step, work) for step, work in zip(steps.records, plans, strict=True) if step.is_decode]
    ms = milliseconds_per_step([step for step, _ in decodes])
    seconds = {name: 1e-3 * ms.pop(name) for name in (MATMUL, ATTENTION)}
    seconds[REST] = 1e-3 * sum(ms.values())
    rows = sum(work.rows for _, work in decodes) / len(decodes)
    kv_tokens = sum(work.kv_tokens for _, work in decodes) / len(decodes)
    work = work_of_parts(engine.model_config, rows, kv_tokens, engine.dtype.itemsize)
    return [Part(name, *work[name], seconds[name]) for name in seconds]


def work_of_parts(
    config: ModelConfig, rows: float, kv_tokens: float, itemsize: int
) -> dict[str, tuple[float, float]]:
    """(operations, bytes) of a decode step with `rows` sequences that hold `kv_tokens` tokens together.

    A number of a weight is read once and costs a multiplication and an addition for each row. A number of K
    or V costs the same for each query head that shares it. Of the rest only norms and activation count: per
    layer two norms, which read two rows and write two, 4 operations a number; and an activation, which reads
    two numbers and writes one, about 20 operations with its exponential.
    """
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    attention = hidden * dim * (2 * heads + 2 * kv_heads)
    weights = layers * (attention + 3 * hidden * inner) + config.vocab_size * hidden
    kv_numbers = 2 * layers * kv_heads * dim * kv_tokens
    return {
        MATMUL: (2 * rows * weights, itemsize * weights),
        ATTENTION: (2 * kv_numbers * heads / kv_heads, itemsize * kv_numbers),
        REST: (
            rows * layers * (8 * hidden + 20 * inner),
            itemsize * rows * layers * (8 * hidden + 3 * inner),
        ),
    }

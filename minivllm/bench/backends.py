"""Who generates: minivllm, its baselines and its peers, behind one function, `Backend.run`.

All backends get the same requests, as token ids, and have to return exactly the tokens asked for, greedily
and without stopping at an end-of-sequence token. What differs is which requests may run when::

    minivllm        every step: each request with room      #####........   a finished request's place
                                                            ###..#######    is taken at once
    hf              `generate` on batches of 8, padded      #####ooooooo    o: computed, and thrown away:
                    left, run to the batch's longest        ############       the batch waits for its longest
    minivllm-traced the same as minivllm, with a record of every step, to see what the trace costs
    hf-continuous   Hugging Face's own continuous batching (both: `hf_backends.py`)
    vllm, openvino  production engines, in environments of their own (`peers.py`)

and, on the same KV memory, this engine with the parts of earlier systems in place of its own::

                            contiguous memory                          paged memory
    static batches          static-contiguous                          static-paged
    continuous batching     orca-max, orca-pow2, orca-oracle           minivllm

The comparison is fair only if each clock covers the same work: here a clock starts with token ids and stops
with token ids; models, KV memory and threads are set up before, and only tokens that were asked for count.

vLLM V1: `vllm/benchmarks/throughput.py` (`run_vllm`, `run_hf`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca
from minivllm.bench.workloads import BenchRequest
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.viz.trace import Trace

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    # Everything that costs time: a cut, a draw, penalties over the output so far, log-probabilities.
    "full": {"temperature": 0.8, "top_p": 0.95, "seed": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5,
             "repetition_penalty": 1.1, "logprobs": 5},
}  # fmt: skip
"""Arguments of `SamplingParams` by the name that `--sampling` gives them."""


@dataclass(frozen=True)
class BackendRun:
    """One pass over the workload: how long it took, and the output tokens of each request in order."""

    seconds: float
    token_ids: list[list[int]]


class Backend(Protocol):
    """Something that generates."""

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """Generate `output_len` greedy tokens for every request, and time it."""
        ...


def prompts_of(requests: list[BenchRequest]) -> list[dict[str, list[int]]]:
    """The prompts as `LLM.generate` takes them."""
    return [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]


def check_run(name: str, requests: list[BenchRequest], run: BackendRun) -> None:
    """Raise RuntimeError unless every request got exactly as many tokens as it asked for."""
    got = [len(tokens) for tokens in run.token_ids]
    asked = [request.output_len for request in requests]
    if got != asked:
        raise RuntimeError(
            f"backend {name} generated {sum(got)} tokens in {len(got)} outputs, asked for were {sum(asked)} "
            f"in {len(asked)}: its time cannot be compared."
        )


class MinivllmBackend:
    """This project; other `options` of `LLM` may swap the scheduler or the KV cache manager.

    Args:
        model: name or folder, as for `LLM`.
        options: keyword arguments of `LLM`.
        sampling: a name in `SAMPLING`.
        traced: record every step in a trace, a new one for each run.
    """

    def __init__(
        self, model: str, options: dict[str, Any], sampling: str = "greedy", traced: bool = False
    ) -> None:
        self.sampling, self.traced = SAMPLING[sampling], traced
        self.llm = LLM(model, **options)

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Starts with an empty prefix cache each time."""
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.trace = Trace() if self.traced else None
        params = [
            SamplingParams(max_tokens=request.output_len, ignore_eos=True, detokenize=False, **self.sampling)
            for request in requests
        ]
        prompts = prompts_of(requests)
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        return BackendRun(seconds, [output.outputs[0].token_ids for output in outputs])


OURS, TRACED = "minivllm", "minivllm-traced"


def _reserving(policy: ReservationPolicy) -> Callable[[int], dict[str, Any]]:
    return lambda longest: {"kv_cache_manager_cls": orca(policy, longest)}


# The parts that make each baseline out of this engine, given max_model_len.
BASELINES: dict[str, Callable[[int], dict[str, Any]]] = {
    OURS: lambda _: {},
    TRACED: lambda _: {},
    "static-paged": lambda _: {"scheduler_cls": StaticBatchScheduler},
    "static-contiguous": lambda longest: {
        "scheduler_cls": StaticBatchScheduler, **_reserving(ReservationPolicy.MAX)(longest)
    },
    "orca-max": _reserving(ReservationPolicy.MAX),
    "orca-pow2": _reserving(ReservationPolicy.POW2),
    "orca-oracle": _reserving(ReservationPolicy.ORACLE),
}  # fmt: skip


def make_baseline(
    name: str, model: str, options: dict[str, Any], sampling: str = "greedy"
) -> MinivllmBackend:
    """This engine, or with parts swapped; `options` as for `LLM`.

    Raises:
        ValueError: a contiguous baseline without `max_model_len`. It reserves that many tokens per request,
            and reserving the model's own 8,192 would be a straw man.
    """
    longest = options.get("max_model_len")
    if longest is None and ("contiguous" in name or "orca" in name):
        raise ValueError(f"backend {name} reserves --max-model-len tokens per request: please give it.")
    return MinivllmBackend(model, options | BASELINES[name](longest or 0), sampling, traced=name == TRACED)

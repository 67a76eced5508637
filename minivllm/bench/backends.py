"""Who generates: minivllm, its baselines and its peers, behind one function, `Backend.run`.

All backends get the same requests, as token ids, and have to return exactly the tokens asked for, greedily
and without stopping at an end-of-sequence token. What differs is who may run when::

    minivllm        every step: whoever has room            #####........   a finished request's place
                                                            ###..#######    is taken at once
    hf              `generate` on batches of 8, padded      #####ooooooo    o: computed, and thrown away:
                    left, run to the batch's longest        ############       the batch waits for its longest
    minivllm-traced the same with a record of every step, to see what the trace costs
    hf-continuous   Hugging Face's own continuous batching (both: `hf_backends.py`)
    vllm            vLLM on a CPU, in an environment of its own (`vllm_cpu.py`)

and, on the same KV memory, this engine with the parts of earlier systems in place of its own::

                            contiguous memory                          paged memory
    static batches          static-contiguous                          static-paged
    continuous batching     orca-max, orca-pow2, orca-oracle           minivllm

The comparison is fair only if each clock covers the same work (vLLM's first benchmark, of 2023, timed the
tokenizer in one arm and not in the other, and let one arm stop early): here the clock starts with token ids
and stops with token ids; models, KV memory and threads are set up before. Only tokens that were asked for
count.

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
    # Everything that costs time: penalties over the output so far, a cut, a draw, log-probabilities.
    "full": {
        "temperature": 0.8,
        "top_p": 0.95,
        "seed": 0,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "logprobs": 5,
    },
}
"""Arguments of `SamplingParams` by the name that `--sampling` gives them."""


@dataclass(frozen=True)
class BackendRun:
    """One pass over the workload: how long it took, and the output tokens of each request in order."""

    seconds: float
    token_ids: list[list[int]]


class Backend(Protocol):
    """Something that generates."""

    name: str

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """Generate `output_len` greedy tokens for every request, and time it."""
        ...


def check_run(name: str, requests: list[BenchRequest], run: BackendRun) -> None:
    """Raise RuntimeError unless every request got exactly the tokens it asked for."""
    got = [len(tokens) for tokens in run.token_ids]
    asked = [request.output_len for request in requests]
    if got != asked:
        raise RuntimeError(
            f"backend {name} generated {sum(got)} tokens in {len(got)} outputs, asked for were {sum(asked)} "
            f"in {len(asked)}: its time cannot be compared."
        )


class MinivllmBackend:
    """This project. `parts` may swap the scheduler or the KV cache manager, as the baselines do.

    Args:
        model: name or folder, as for `LLM`.
        options: keyword arguments of `LLM`.
        name: how reports call it.
        parts: further keyword arguments, what makes it a baseline.
        traced: record every step in a trace, a new one for each run.
    """

    def __init__(
        self,
        model: str,
        options: dict[str, Any],
        name: str = "minivllm",
        parts: dict[str, Any] | None = None,
        traced: bool = False,
    ) -> None:
        self.name, self.sampling, self.traced = name, SAMPLING["greedy"], traced
        self.llm = LLM(model, **options, **(parts or {}))

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Starts with an empty prefix cache each time."""
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.trace = Trace() if self.traced else None
        prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
        params = [
            SamplingParams(max_tokens=request.output_len, ignore_eos=True, detokenize=False, **self.sampling)
            for request in requests
        ]
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        return BackendRun(seconds, [output.outputs[0].token_ids for output in outputs])


TRACED = "minivllm-traced"
"""minivllm with a trace of every step (`minivllm/viz/trace.py`), to see what recording it costs."""

# The parts that make each baseline out of this engine, given max_model_len.
BASELINES: dict[str, Callable[[int], dict[str, Any]]] = {
    "minivllm": lambda _: {},
    TRACED: lambda _: {},
    "static-paged": lambda _: {"scheduler_cls": StaticBatchScheduler},
    "static-contiguous": lambda longest: {
        "scheduler_cls": StaticBatchScheduler,
        "kv_cache_manager_cls": orca(ReservationPolicy.MAX, longest),
    },
    "orca-max": lambda longest: {"kv_cache_manager_cls": orca(ReservationPolicy.MAX, longest)},
    "orca-pow2": lambda longest: {"kv_cache_manager_cls": orca(ReservationPolicy.POW2, longest)},
    "orca-oracle": lambda longest: {"kv_cache_manager_cls": orca(ReservationPolicy.ORACLE, longest)},
}
PEERS = ("hf", "hf-continuous", "vllm")
BACKENDS = (*BASELINES, *PEERS)


def make_baseline(name: str, model: str, options: dict[str, Any]) -> MinivllmBackend:
    """This engine, or with parts swapped; `options` as for `LLM`.

    The contiguous ones reserve `max_model_len`, so it has to be given for them: reserving the model's own
    8,192 tokens for each request would be a straw man.
    """
    contiguous = "contiguous" in name or "orca" in name
    if contiguous and options.get("max_model_len") is None:
        raise ValueError(f"backend {name} reserves --max-model-len tokens a request: please give it.")
    parts = BASELINES[name](options.get("max_model_len") or 0)
    return MinivllmBackend(model, options, name, parts, traced=name == TRACED)

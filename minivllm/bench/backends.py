"""What generates: minivllm, its baselines and Hugging Face, behind one function, `Backend.run`.

All backends get the same requests, as token ids, and have to return exactly the tokens asked for, greedily
and without stopping at an end-of-sequence token. They differ in which requests may run when::

    minivllm        every step: each request with room      #####........   a finished request's place
                                                            ###..#######    is taken at once
    hf              `generate` on batches of 8, padded      #####ooooooo    o: computed, and thrown away:
                    left, run to the batch's longest        ############       the batch waits for its longest
    minivllm-traced minivllm with a record of every step
    minivllm-eager  call by call: without CUDA graphs, without compiled steps
    minivllm-float32  whatever --dtype says
    hf-continuous   Hugging Face's continuous batching
    vllm, openvino  production engines, in environments of their own (`peers.py`)

    the same KV memory      contiguous                                 paged
    static batches          static-contiguous                          static-paged
    continuous batching     orca-max, orca-pow2, orca-oracle           minivllm

Each clock starts with token ids and stops with token ids; models, KV memory and threads are set up before it.
vLLM V1: `vllm/benchmarks/throughput.py` (`run_vllm`, `run_hf`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca
from minivllm.bench.workloads import BenchRequest
from minivllm.block_table import cdiv
from minivllm.engine import choose_device, choose_dtype
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.viz.trace import Trace
from minivllm.weights.loader import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAGE_SIZE = 256  # tokens per KV block of Hugging Face, the default of ContinuousBatchingConfig
# After so long without a result, Hugging Face is asked whether its background thread is still alive.
RESULT_TIMEOUT_SECONDS = 5.0
OURS, TRACED, EAGER = "minivllm", "minivllm-traced", "minivllm-eager"
WATERMARK, FLOAT32 = "minivllm-watermark", "minivllm-float32"
# Arguments of `SamplingParams` by the name that `--sampling` gives them.
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    # All that costs time: a cut, a draw, penalties over the output so far, log-probabilities.
    "full": {"temperature": 0.8, "top_p": 0.95, "seed": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5,
             "repetition_penalty": 1.1, "logprobs": 5},
}  # fmt: skip


@dataclass(frozen=True)
class BackendRun:
    """One pass over the workload: how long it took, and the output tokens of each request in order."""

    seconds: float
    token_ids: list[list[int]]


class Backend(Protocol):
    """Something that generates."""

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """Generate `output_len` greedy tokens for every request, and time it."""


def prompts_of(requests: list[BenchRequest]) -> list[dict[str, list[int]]]:
    """The prompts as `LLM.generate` takes them."""
    return [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]


def check_run(name: str, requests: list[BenchRequest], run: BackendRun) -> None:
    """RuntimeError unless every request got exactly as many tokens as it asked for."""
    got = [len(tokens) for tokens in run.token_ids]
    asked = [request.output_len for request in requests]
    if got != asked:
        raise RuntimeError(
            f"backend {name} generated {sum(got)} tokens in {len(got)} outputs, asked for were {sum(asked)} "
            f"in {len(asked)}: its time cannot be compared."
        )


class MinivllmBackend:
    """This project, perhaps with swapped parts in `options`; `traced` records the steps of each run."""

    def __init__(
        self, model: str, options: dict[str, Any], sampling: str = "greedy", traced: bool = False
    ) -> None:
        self.sampling, self.traced = SAMPLING[sampling], traced
        self.llm = LLM(model, **options)

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Starts with an empty prefix cache each time."""
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.trace = Trace() if self.traced else None
        settings = {"ignore_eos": True, "detokenize": False, **self.sampling}
        params = [SamplingParams(max_tokens=request.output_len, **settings) for request in requests]
        prompts = prompts_of(requests)
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        return BackendRun(seconds, [output.outputs[0].token_ids for output in outputs])


def _reserving(policy: ReservationPolicy) -> Callable[[int], dict[str, Any]]:
    return lambda longest: {"kv_cache_manager_cls": orca(policy, longest)}


# The parts that make each baseline out of this engine, given max_model_len.
BASELINES: dict[str, Callable[[int], dict[str, Any]]] = {
    OURS: lambda _: {},
    TRACED: lambda _: {},
    WATERMARK: lambda _: {"watermark": 0.05},
    EAGER: lambda _: {"enforce_eager": True},
    FLOAT32: lambda _: {"dtype": "float32"},
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
    """This engine, or with parts swapped. A contiguous baseline needs `max_model_len`, which it reserves."""
    longest = options.get("max_model_len")  # the model's own 8,192 would be a straw man
    if longest is None and ("contiguous" in name or "orca" in name):
        raise ValueError(f"backend {name} reserves --max-model-len tokens per request: please give it.")
    return MinivllmBackend(model, options | BASELINES[name](longest or 0), sampling, traced=name == TRACED)


def load_hf_model(model: str, dtype: str, device: str) -> PreTrainedModel:
    """The same weights in Hugging Face's own model, with the same precision on the same device."""
    from transformers import AutoModelForCausalLM, GenerationConfig, logging

    logging.disable_progress_bar()  # it would be drawn between the lines of the report
    torch_device = choose_device(device)
    hf = AutoModelForCausalLM.from_pretrained(
        resolve_model(model), dtype=choose_dtype(dtype, torch_device), local_files_only=True
    )
    # A fresh generation config: the model's own would bring back its end-of-sequence tokens and sampling.
    hf.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return hf.to(torch_device).eval()


def left_padded(prompts: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, (R, longest): (5, 6, 7) and (8,) give [[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]]."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids, mask


class HfStaticBackend:
    """`model.generate` on static batches in the order of the requests, here three of them, left-padded::

        ..aaaa | 1 2 3 4 5 6       - : computed, and not asked for
        bbbbbb | 1 2 - - - -       18 tokens computed, 6 + 2 + 4 = 12 asked for
        ...ccc | 1 2 3 4 - -

    `sort_by_length`, which no server can do, is the best that static batching could ever reach.
    """

    def __init__(self, hf: PreTrainedModel, max_batch_size: int = 8, sort_by_length: bool = False) -> None:
        self.hf, self.max_batch_size, self.sort_by_length = hf, max_batch_size, sort_by_length

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Tokens beyond what a request asked for are computed and dropped."""
        order = list(range(len(requests)))
        if self.sort_by_length:
            order.sort(key=lambda i: requests[i].output_len)
        token_ids: list[list[int]] = [[] for _ in requests]
        start = time.perf_counter()
        for first in range(0, len(order), self.max_batch_size):
            batch = order[first : first + self.max_batch_size]
            ids, mask = left_padded([requests[i].prompt_token_ids for i in batch])
            longest = max(requests[i].output_len for i in batch)
            lengths = {"min_new_tokens": longest, "max_new_tokens": longest}
            device = self.hf.device
            output = self.hf.generate(ids.to(device), attention_mask=mask.to(device), **lengths)
            for i, tokens in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
                token_ids[i] = tokens[: requests[i].output_len]
        return BackendRun(time.perf_counter() - start, token_ids)


class HfContinuousBackend:
    """Hugging Face's continuous batching, fed request by request, with KV memory for the whole workload."""

    def __init__(
        self, hf: PreTrainedModel, max_num_seqs: int, max_num_batched_tokens: int, share_prefixes: bool
    ) -> None:
        self.hf, self.share_prefixes = hf, share_prefixes
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`; RuntimeError if a request failed or the background thread stopped."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        # Before this option existed (5.17), transformers switched by itself.
        known = hasattr(ContinuousBatchingConfig, "auto_switch_to_flash")
        config = ContinuousBatchingConfig(
            num_blocks=sum(cdiv(request.num_tokens, PAGE_SIZE) for request in requests) + 1,
            max_batch_tokens=self.max_num_batched_tokens,
            max_requests_per_batch=self.max_num_seqs,
            allow_block_sharing=self.share_prefixes,
            **({"auto_switch_to_flash": self.hf.device.type == "cuda"} if known else {}),
        )
        results: dict[str, list[int]] = {}
        # No token has the id -1, so no request ends early.
        with self.hf.continuous_batching_context_manager(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=config,
        ) as manager:
            start = time.perf_counter()
            for i, request in enumerate(requests):
                prompt, length = list(request.prompt_token_ids), request.output_len
                manager.add_request(prompt, request_id=str(i), max_new_tokens=length, eos_token_id=-1)
            while len(results) < len(requests):
                result = manager.get_result(timeout=RESULT_TIMEOUT_SECONDS)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("hf-continuous stopped before it was done; its log says why.")
                elif result.error is not None:
                    raise RuntimeError(f"hf-continuous failed on request {result.request_id}: {result.error}")
                elif result.is_finished():
                    results[result.request_id] = list(result.generated_tokens)
            seconds = time.perf_counter() - start
        return BackendRun(seconds, [results[str(i)] for i in range(len(requests))])

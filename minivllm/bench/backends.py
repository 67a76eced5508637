"""Who generates: minivllm, and the peers it is measured against, behind one function.

All backends get the same requests, as token ids, and have to return exactly the tokens asked for, greedily
and without stopping at an end-of-sequence token. What differs is who may run when::

    minivllm        every step: whoever has room            #####........   a finished request's place
                                                            ###..#######    is taken at once
    hf              `generate` on batches of 8, padded      #####ooooooo    o: computed, and thrown away:
                    left, run to the batch's longest        ############       the batch waits for its longest
    hf-continuous   Hugging Face's own continuous batching, its `page_size` of 256

The comparison is fair only if each clock covers the same work (vLLM's first benchmark, of 2023, timed the
tokenizer in one arm and not in the other, and let one arm stop early): here the clock starts with token ids
and stops with token ids; models, KV memory and threads are set up before. Only tokens that were asked for
count.

vLLM V1: `vllm/benchmarks/throughput.py` (`run_vllm`, `run_hf`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from minivllm.bench.workloads import BenchRequest
from minivllm.block_table import cdiv
from minivllm.engine import choose_device, choose_dtype
from minivllm.llm import LLM
from minivllm.model_loader import resolve_model
from minivllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HF_PAGE_SIZE = 256  # the default of ContinuousBatchingConfig
HF_TIMEOUT_SECONDS = 5.0


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
    """This project. `parts` may swap the scheduler or the KV cache manager, as the baselines do."""

    def __init__(
        self, model: str, options: dict[str, Any], name: str = "minivllm", parts: dict[str, Any] | None = None
    ) -> None:
        self.name = name
        self.llm = LLM(model, **options, **(parts or {}))

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Starts with an empty prefix cache each time."""
        self.llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
        params = [
            SamplingParams(temperature=0.0, max_tokens=request.output_len, ignore_eos=True, detokenize=False)
            for request in requests
        ]
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        return BackendRun(seconds, [output.outputs[0].token_ids for output in outputs])


def load_hf_model(model: str, dtype: str, device: str) -> PreTrainedModel:
    """The same weights in Hugging Face's own model, with the same precision on the same device."""
    from transformers import AutoModelForCausalLM, GenerationConfig, logging

    logging.disable_progress_bar()
    torch_device = choose_device(device)
    hf = AutoModelForCausalLM.from_pretrained(
        resolve_model(model), dtype=choose_dtype(dtype, torch_device), local_files_only=True
    )
    # A fresh generation config: the model's own would bring back its end-of-sequence tokens and sampling.
    hf.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return hf.to(torch_device).eval()


def left_padded(prompts: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each (R, longest prompt); prompts end at the right edge.

    Example: (5, 6, 7) and (8,) give ids [[5, 6, 7], [0, 0, 8]] and mask [[1, 1, 1], [0, 0, 1]].
    """
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


class HfStaticBackend:
    """`model.generate` on static batches in the order of the requests.

    Args:
        hf: a Hugging Face model.
        max_batch_size: requests in a batch.
        sort_by_length: put requests of similar output length into one batch. No server can, for it does not
            know them; this is the best that static batching could ever do.
    """

    name = "hf"

    def __init__(self, hf: PreTrainedModel, max_batch_size: int = 8, sort_by_length: bool = False) -> None:
        self.hf, self.max_batch_size, self.sort_by_length = hf, max_batch_size, sort_by_length

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Tokens beyond what a request asked for are computed and dropped."""
        order = list(range(len(requests)))
        if self.sort_by_length:
            order.sort(key=lambda i: requests[i].output_len)
        batches = [order[i : i + self.max_batch_size] for i in range(0, len(order), self.max_batch_size)]
        token_ids: list[list[int]] = [[] for _ in requests]
        start = time.perf_counter()
        for batch in batches:
            for i, tokens in zip(batch, self._generate([requests[i] for i in batch]), strict=True):
                token_ids[i] = tokens[: requests[i].output_len]
        return BackendRun(time.perf_counter() - start, token_ids)

    def _generate(self, batch: list[BenchRequest]) -> list[list[int]]:
        """All requests of a batch, each with as many output tokens as the longest of them."""
        ids, mask = left_padded([request.prompt_token_ids for request in batch])
        longest = max(request.output_len for request in batch)
        output = self.hf.generate(
            input_ids=ids.to(self.hf.device),
            attention_mask=mask.to(self.hf.device),
            min_new_tokens=longest,
            max_new_tokens=longest,
        )
        return output[:, ids.shape[1] :].tolist()


class HfContinuousBackend:
    """Hugging Face's continuous batching, fed request by request so that each has its own length.

    Its KV memory is set to hold the whole workload, so it never has to evict; memory and background thread
    are set up before the clock starts.
    """

    name = "hf-continuous"

    def __init__(
        self, hf: PreTrainedModel, max_num_seqs: int, max_num_batched_tokens: int, share_prefixes: bool
    ) -> None:
        self.hf, self.share_prefixes = hf, share_prefixes
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`."""
        from transformers import ContinuousBatchingConfig, GenerationConfig

        config = ContinuousBatchingConfig(
            num_blocks=sum(cdiv(request.num_tokens, HF_PAGE_SIZE) for request in requests) + 1,
            max_batch_tokens=self.max_num_batched_tokens,
            max_requests_per_batch=self.max_num_seqs,
            allow_block_sharing=self.share_prefixes,
            auto_switch_to_flash=self.hf.device.type == "cuda",
        )
        with self.hf.continuous_batching_context_manager(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=config,
        ) as manager:
            results: dict[str, list[int]] = {}
            start = time.perf_counter()
            for i, request in enumerate(requests):
                manager.add_request(
                    list(request.prompt_token_ids),
                    request_id=str(i),
                    max_new_tokens=request.output_len,
                    eos_token_id=-1,
                )
            while len(results) < len(requests):
                result = manager.get_result(timeout=HF_TIMEOUT_SECONDS)
                if result is not None and result.error is not None:
                    raise RuntimeError(f"hf-continuous failed on request {result.request_id}: {result.error}")
                if result is not None and result.is_finished():
                    results[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise RuntimeError("hf-continuous stopped before it was done; its log says why.")
            seconds = time.perf_counter() - start
        return BackendRun(seconds, [results[str(i)] for i in range(len(requests))])

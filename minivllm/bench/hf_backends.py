"""Hugging Face as a peer: `generate` in static batches, and its own continuous batching.

Both are set up as their documentation advises and as favourably as we know how: the same weights, precision
and threads as minivllm, KV memory for the whole workload, set up before the clock starts. One thing differs
from everyday use. The model's own generation config is put aside, because its end-of-sequence tokens would
let a batch stop early and still be credited with all its tokens.

    left-padded batch of 3        prompt   output
                                  ..aaaa | 1 2 3 4 5 6       - : computed, and not asked for
                                  bbbbbb | 1 2 - - - -
                                  ...ccc | 1 2 3 4 - -

What the picture costs: 3 rows x 6 steps are 18 tokens computed, of which 6 + 2 + 4 = 12 were asked for.

vLLM V1: `vllm/benchmarks/throughput.py` (`run_hf`).
"""

from __future__ import annotations

import time
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from minivllm.bench.backends import BackendRun
from minivllm.bench.workloads import BenchRequest
from minivllm.block_table import cdiv
from minivllm.engine import choose_device, choose_dtype
from minivllm.weights.loader import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAGE_SIZE = 256  # tokens per KV block of Hugging Face, the default of ContinuousBatchingConfig
# After so long without a result, Hugging Face is asked whether its background thread is still alive.
RESULT_TIMEOUT_SECONDS = 5.0


def load_hf_model(model: str, dtype: str, device: str) -> PreTrainedModel:
    """The same weights in Hugging Face's own model, with the same precision on the same device."""
    from transformers import AutoModelForCausalLM, GenerationConfig, logging

    # Its bar would be drawn between the lines of the report.
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
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids, mask


class HfStaticBackend:
    """`model.generate` on static batches in the order of the requests.

    Args:
        hf: a Hugging Face model.
        max_batch_size: requests in a batch.
        sort_by_length: put requests of similar output length into one batch. A server does not know them, so
            this is the best that static batching could ever do.
    """

    def __init__(self, hf: PreTrainedModel, max_batch_size: int = 8, sort_by_length: bool = False) -> None:
        self.hf, self.max_batch_size, self.sort_by_length = hf, max_batch_size, sort_by_length

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Tokens beyond what a request asked for are computed and dropped."""
        order = list(range(len(requests)))
        if self.sort_by_length:
            order.sort(key=lambda i: requests[i].output_len)
        # Whatever the sorting, results go back to the places of their requests.
        token_ids: list[list[int]] = [[] for _ in requests]
        start = time.perf_counter()
        for first in range(0, len(order), self.max_batch_size):
            batch = order[first : first + self.max_batch_size]
            for i, tokens in zip(batch, self._generate([requests[i] for i in batch]), strict=True):
                token_ids[i] = tokens[: requests[i].output_len]
        return BackendRun(time.perf_counter() - start, token_ids)

    def _generate(self, batch: list[BenchRequest]) -> list[list[int]]:
        """As many output tokens for each request as the longest of the batch asks for."""
        ids, mask = left_padded([request.prompt_token_ids for request in batch])
        device, longest = self.hf.device, max(request.output_len for request in batch)
        output = self.hf.generate(
            ids.to(device), attention_mask=mask.to(device), min_new_tokens=longest, max_new_tokens=longest
        )
        return output[:, ids.shape[1] :].tolist()


class HfContinuousBackend:
    """Hugging Face's continuous batching, fed request by request so that each has its own length.

    Its KV memory is set to hold the whole workload, so it never has to evict; memory and background thread
    are set up before the clock starts.

    Args:
        hf: a Hugging Face model.
        max_num_seqs: requests running at once, as for minivllm.
        max_num_batched_tokens: tokens per step, as for minivllm.
        share_prefixes: its prefix cache, on or off as for minivllm.
    """

    def __init__(
        self, hf: PreTrainedModel, max_num_seqs: int, max_num_batched_tokens: int, share_prefixes: bool
    ) -> None:
        self.hf, self.share_prefixes = hf, share_prefixes
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`.

        Raises:
            RuntimeError: a request failed, or the background thread stopped.
        """
        from transformers import ContinuousBatchingConfig, GenerationConfig

        # Before this option existed (5.17), transformers switched by itself.
        option = "auto_switch_to_flash"
        known = option in {field.name for field in fields(ContinuousBatchingConfig)}
        config = ContinuousBatchingConfig(
            num_blocks=sum(cdiv(request.num_tokens, PAGE_SIZE) for request in requests) + 1,
            max_batch_tokens=self.max_num_batched_tokens,
            max_requests_per_batch=self.max_num_seqs,
            allow_block_sharing=self.share_prefixes,
            **({option: self.hf.device.type == "cuda"} if known else {}),
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

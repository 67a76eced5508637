"""The engine: one step is three calls.

    add_request ---> scheduler.waiting
                         |
    step():              v
        plan    = scheduler.schedule()                       what runs, in which blocks    pure Python
        outputs = runner.execute_model(plan)                 the model                     tensors
        updated = scheduler.update_from_output(plan, outputs)  append, fork, finish        pure Python

    RequestOutput <--- output_processor: text, stop strings

A loop that calls `step()` until `has_unfinished_requests()` is false is an inference server
(`engine_loop.py`). Requests may be added or aborted between any two steps, and each of these is all or
nothing::

    engine.add_request("a", "The sky is", SamplingParams(max_tokens=2))      queued, or refused: no change
    engine.step()   ->  [RequestOutput("a", " blue", finished=False)]        prompt computed, 1 token
    engine.step()   ->  [RequestOutput("a", " blue and", finished=True)]     blocks free again

Paper: section 4 and Figure 4. vLLM V1: `vllm/v1/engine/core.py` (`EngineCore.step`) and `llm_engine.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch

from minivllm.attention import AttentionBackend
from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.backends.attention_torch import TorchAttention
from minivllm.backends.cuda_graphs import DecodeGraphs, can_replay
from minivllm.config import EngineConfig
from minivllm.inputs import InputProcessor, Request
from minivllm.kv_cache import KVCache
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.layers import tile_linears
from minivllm.metrics.log import PeriodicLog
from minivllm.metrics.memory import MemoryReport, derive_num_blocks
from minivllm.metrics.stats import EngineStats, collect_stats
from minivllm.model import Model
from minivllm.model_runner import ModelRunner, SamplerFunction
from minivllm.output_processor import OutputProcessor
from minivllm.outputs import RequestOutput
from minivllm.prompts import Prompt
from minivllm.sampler import Sampler
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduler import Scheduler, Updated
from minivllm.scheduler_output import SchedulerOutput
from minivllm.scheduling_policy import POLICIES
from minivllm.sequence import SequenceGroup
from minivllm.weights.loader import load_model, load_model_config, load_tokenizer, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class StepObserver(Protocol):
    """An object that is told about every step, such as the `Trace` of `viz/trace.py`, which records them."""

    def record(self, plan: SchedulerOutput, updated: Updated, scheduler: Scheduler, now: float) -> None:
        """Take in one step after its end; `record` must change nothing."""


class LLMEngine:
    """A model, its KV cache, a scheduler, and the loop body that ties them together.

    Each part owns something: the scheduler the queues and, through its manager, the blocks; the runner the
    tensors; the output processor the text. The engine itself holds no state of a request, so `reset` is two
    calls.

    Args:
        config: see `EngineConfig`.
        scheduler_cls: `Scheduler` or another class with its methods. This part and the next three can be
            swapped, as the baselines and the exercises do.
        kv_cache_manager_cls: likewise for `KVCacheManager`.
        sampler: likewise for `Sampler()`.
        attention_backend: an object to use instead of the backend that `config.attention_backend` names.
        trace: told about every step (see `viz/trace.py`); None: nothing is recorded.

    Raises:
        ValueError: the model, the device or the memory is not what the config asks for.
        TypeError: a part lacks a method that the engine will call.
        ConnectionError: the model is not here yet and cannot be fetched.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        scheduler_cls: type[Scheduler] = Scheduler,
        kv_cache_manager_cls: type[KVCacheManager] = KVCacheManager,
        sampler: SamplerFunction | None = None,
        attention_backend: AttentionBackend | None = None,
        trace: StepObserver | None = None,
    ) -> None:
        # Quick checks come first, before gigabytes of weights are read.
        _require_methods("attention_backend", attention_backend, ("prepare", "forward"))
        _require_methods("trace", trace, ("record",))
        folder = resolve_model(config.model)
        self.config = config
        self.model_folder = folder
        self.model_config = load_model_config(folder)
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.max_model_len = self._choose_max_model_len()
        self.tokenizer: PreTrainedTokenizerFast | None = None
        if not config.skip_tokenizer_init:
            self.tokenizer = load_tokenizer(resolve_model(config.tokenizer) if config.tokenizer else folder)

        parts = self.model_config, config.block_size, self.dtype, self.device
        if config.batch_invariant:
            if self.device.type != "cpu":
                raise ValueError(
                    f"batch_invariant=True is for CPUs only, and this engine is on {self.device}."
                )
            attention_backend = TorchAttention(*parts, piece=1)
        self.attention = attention_backend or make_attention_backend(config.attention_backend, *parts)
        # In this order: the KV cache gets what the weights leave, and CUDA graphs hold the addresses of both.
        model = load_model(folder, self.attention, self.dtype, self.device)
        if config.batch_invariant:
            tile_linears(model)
        kv_cache = self._make_kv_cache(model)
        graphs = None
        if can_replay(self.device, self.attention.name, config.enforce_eager):
            graphs = DecodeGraphs(model, kv_cache, config.max_num_seqs, self.max_model_len)
        self.runner = ModelRunner(model, kv_cache, sampler or Sampler(), graphs)
        kv = kv_cache_manager_cls(
            num_blocks=kv_cache.num_blocks,
            block_size=config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            num_cpu_blocks=kv_cache.num_cpu_blocks,
        )
        self.scheduler = self._make_scheduler(scheduler_cls, kv)
        self.input_processor = InputProcessor(
            config=config,
            model_config=self.model_config,
            tokenizer=self.tokenizer,
            max_model_len=self.max_model_len,
        )
        self.output_processor = OutputProcessor(self.tokenizer)
        self.trace = trace  # told of each step; the engine itself never reads it
        self.periodic_log = None if config.disable_log_stats else PeriodicLog()
        self._is_whole = True  # False while an update is going on, and after one that was cut short

    # -- requests -----------------------------------------------------------------------------------

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | BeamSearchParams | None = None,
        arrival_time: float | None = None,
        priority: int = 0,
    ) -> None:
        """Queue a request.

        Args:
            request_id: a name not used by another unfinished request.
            prompt: `str`, `{"prompt": str}` or `{"prompt_token_ids": [int]}`.
            params: None: `SamplingParams()`.
            arrival_time: in seconds of `time.perf_counter()`; None: now.
            priority: with scheduling_policy="priority", the smaller goes first.

        Raises:
            ValueError, TypeError: something is wrong with the request; the engine is as it was.
        """
        request = Request(prompt, SamplingParams() if params is None else params, arrival_time, priority)
        self.add_group(self.make_group(request_id, request))

    def make_group(self, request_id: str, request: Request) -> SequenceGroup:
        """Check a request without queueing it, so that many can be checked before the first is queued.

        The sequence id of a refused request is lost, which is harmless: ids need to be unique, not dense.

        Raises:
            ValueError, TypeError: as in `add_request`.
        """
        group = self.input_processor.make_group(request_id, request, self.scheduler.new_seq_id())
        self.scheduler.check(group)
        return group

    def add_group(self, group: SequenceGroup) -> None:
        """Queue a request that `make_group` has checked.

        The group is checked once more, because two groups made with one request_id are both right until one
        of them is queued. The seed comes last: a refused request must not use one up.
        """
        self.scheduler.check(group)
        with self._all_or_nothing():
            self.scheduler.add(group)
            self.output_processor.add(group)
            self.input_processor.give_seed(group)

    def abort_request(self, request_id: str) -> RequestOutput | None:
        """End a request now; all its blocks are free afterwards.

        Call it between steps: the next step may give the freed blocks to other requests.

        Returns:
            What there is of its output, with finish_reason "abort"; None if there is no such request.
        """
        if request_id not in self.scheduler.groups:
            return None
        with self._all_or_nothing():
            group = self.scheduler.abort(request_id)
            return self.output_processor.finish_aborted(group, time.perf_counter())

    def has_unfinished_requests(self) -> bool:
        """Whether a call of `step` has anything to do."""
        return self.scheduler.has_unfinished

    # -- the loop body ------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Run one step for all requests that fit, and return what the requests asked to see.

        If anything interrupts a step (an error, Ctrl-C), every request is dropped and every block is free:
        the KV cache may be half written then, so nothing in it can be trusted. The engine stays usable.
        """
        with self._all_or_nothing():
            plan = self.scheduler.schedule()
            self.output_processor.note_scheduled(plan, time.perf_counter())
            outputs = self.runner.execute_model(plan)
            updated = self.scheduler.update_from_output(plan, outputs)
            results = self._make_outputs(updated)
            if self.trace is not None:
                self.trace.record(plan, updated, self.scheduler, time.perf_counter())
        if self.periodic_log is not None:
            self.periodic_log.note(self.stats, time.perf_counter())
        return results

    def _make_outputs(self, updated: Updated) -> list[RequestOutput]:
        """From tokens to text, from text to stop strings, and on to what the requests asked to see."""
        now = time.perf_counter()
        self.scheduler.finish_stopped(self.output_processor.read(updated, now))
        return self.output_processor.make_outputs(updated, now)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Around an update in several places: if the update is cut short, every request is dropped."""
        self.recover()
        self._is_whole = False
        try:
            yield
            self._is_whole = True
        finally:
            self.recover()

    def recover(self) -> None:
        """Drop all requests if an update was cut short; does nothing else.

        An interrupt may cut `recover` short as well: the next call then starts over.
        """
        if not self._is_whole:
            self.reset()

    def reset(self) -> None:
        """Drop all requests and forget all KV. The weights, the seeds to come and the counters stay."""
        self.scheduler.reset()
        self.output_processor.reset()
        self._is_whole = True

    def reset_prefix_cache(self) -> None:
        """Forget the content of all blocks, so that the next prompts are computed from scratch.

        Allowed while requests run: they keep their blocks, which later prompts just cannot find any more.
        """
        self.scheduler.kv.pool.reset_cache()

    def stats(self) -> EngineStats:
        """Counters and gauges of this moment (`metrics/stats.py`), in one pass over the running sequences."""
        return collect_stats(self.scheduler, self.output_processor)

    def memory(self) -> MemoryReport:
        """Bytes held by weights, KV cache and workspace."""
        kv_cache = self.runner.kv_cache
        return MemoryReport(
            weights=self.runner.model.nbytes,
            kv_cache=kv_cache.nbytes,
            workspace=getattr(self.attention, "workspace_nbytes", 0),
            num_blocks=kv_cache.num_blocks,
            num_tokens=kv_cache.num_blocks * kv_cache.block_size,
            bytes_per_token=self.model_config.kv_bytes_per_token(self.dtype.itemsize),
        )

    # -- construction -------------------------------------------------------------------------------

    def _choose_max_model_len(self) -> int:
        """Tokens a sequence may have. Beyond the model's own limit there are no angles for its positions."""
        longest = self.model_config.max_position_embeddings
        asked = self.config.max_model_len
        if asked is not None and asked > longest:
            raise ValueError(
                f"User-specified max_model_len ({asked}) is greater than the derived max_model_len "
                f"(max_position_embeddings={longest} in the model's config.json)."
            )
        return longest if asked is None else asked

    def _make_scheduler(self, scheduler_cls: type[Scheduler], kv: KVCacheManager) -> Scheduler:
        """The scheduler as the config wants it."""
        return scheduler_cls(
            kv=kv,
            max_num_seqs=self.config.max_num_seqs,
            max_num_batched_tokens=self.config.max_num_batched_tokens,
            enable_chunked_prefill=self.config.enable_chunked_prefill,
            preemption_mode=self.config.preemption_mode,
            policy=POLICIES[self.config.scheduling_policy](),
        )

    def _make_kv_cache(self, model: Model) -> KVCache:
        """Size and allocate the blocks, on the device and in swap space.

        Example, SmolLM2-135M in float32: a block of 16 takes 737,280 bytes, so swap_space_bytes=10**9 holds
        1,356 blocks.
        """
        config, model_config = self.config, self.model_config
        num_blocks = derive_num_blocks(config, model, self.dtype, self.device, self.max_model_len)
        block_bytes = config.block_size * model_config.kv_bytes_per_token(self.dtype.itemsize)
        num_cpu_blocks = config.swap_space_bytes // block_bytes
        if config.preemption_mode == "swap" and num_cpu_blocks == 0:
            raise ValueError(
                f"swap_space_bytes ({config.swap_space_bytes}) holds no block: one takes {block_bytes} bytes."
            )
        return KVCache(model_config, num_blocks, config.block_size, self.dtype, self.device, num_cpu_blocks)


def _require_methods(name: str, part: object, methods: tuple[str, ...]) -> None:
    """Raise TypeError unless `part` is None or has these methods."""
    missing = [method for method in methods if part is not None and not callable(getattr(part, method, None))]
    if missing:
        raise TypeError(f"{name} must be an object with {', '.join(methods)}(), got {part!r}.")


def choose_device(device: str) -> torch.device:
    """ "auto": CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device="cuda", but torch finds no CUDA device here. Use device="cpu" or "auto".')
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto": float32 on a CPU; bfloat16 on GPUs that have it, else float16 (T4, V100)."""
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if dtype == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            f"bfloat16 needs a GPU of compute capability 8.0 or newer; {torch.cuda.get_device_name(device)} "
            f'has {".".join(map(str, torch.cuda.get_device_capability(device)))}. Use dtype="float16".'
        )
    return getattr(torch, dtype)

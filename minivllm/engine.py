"""The engine: one step is three calls.

    add_request ---> scheduler.waiting
                         |
    step():              v
        plan    = scheduler.schedule()                       what runs, in which blocks    pure Python
        outputs = executor.execute_model(plan)               the model                     tensors
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from minivllm.attention import AttentionBackend
from minivllm.config import EngineConfig
from minivllm.distributed.config import check_workers
from minivllm.distributed.executor import Executor, make_executor
from minivllm.distributed.worker import choose_device, choose_dtype
from minivllm.inputs import InputProcessor, Request
from minivllm.kv_cache_manager import KVCacheManager
from minivllm.metrics.log import PeriodicLog
from minivllm.metrics.memory import MemoryReport, total
from minivllm.metrics.stats import EngineStats, collect_stats
from minivllm.model_runner import ModelRunner, SamplerFunction
from minivllm.output_processor import OutputProcessor
from minivllm.outputs import RequestOutput
from minivllm.prompts import Prompt
from minivllm.sampling_params import BeamSearchParams, SamplingParams
from minivllm.scheduler import Scheduler, Updated
from minivllm.scheduler_output import SchedulerOutput
from minivllm.scheduling_policy import POLICIES
from minivllm.sequence import SequenceGroup
from minivllm.speculative.config import speculation_of
from minivllm.speculative.speculator import Speculator
from minivllm.weights.loader import load_model_config, load_tokenizer, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class StepObserver(Protocol):
    """An object that is told about every step, such as the `Trace` of `viz/trace.py`, which records them."""

    def record(self, plan: SchedulerOutput, updated: Updated, scheduler: Scheduler, now: float) -> None:
        """Take in one step after its end; `record` must change nothing."""


class LLMEngine:
    """A model, its KV cache, a scheduler, and the loop body that ties them together.

    Each part owns something: the scheduler the queues and, through its manager, the blocks; the executor the
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
        executor_cls: makes the `Executor` from config, sampler and attention backend.

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
        executor_cls: Callable[..., Executor] = make_executor,
    ) -> None:
        # Quick checks come first, before gigabytes of weights are read.
        _require_methods("attention_backend", attention_backend, ("prepare", "forward"))
        _require_methods("trace", trace, ("record",))
        check_workers(config)
        speculation = speculation_of(config)
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

        resolved = replace(config, model=str(folder), max_model_len=self.max_model_len)
        self.executor: Executor = executor_cls(resolved, sampler, attention_backend)
        kv = kv_cache_manager_cls(
            num_blocks=self.executor.num_blocks,
            block_size=config.block_size,
            enable_prefix_caching=config.enable_prefix_caching,
            num_cpu_blocks=self.executor.num_cpu_blocks,
            watermark=config.watermark,
        )
        self.scheduler = self._make_scheduler(scheduler_cls, kv)
        if speculation is not None:
            self.scheduler.speculator = Speculator(speculation)
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
            outputs = self.executor.execute_model(plan)
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
        """Bytes held by weights, KV cache and workspace, of all workers together."""
        return total(self.executor.memory())

    def shutdown(self) -> None:
        """End the workers, where they are processes of their own; the engine is not to be used afterwards."""
        self.executor.shutdown()

    @property
    def runner(self) -> ModelRunner:
        """The model runner, for a look inside; only where it is in this process."""
        return self.executor.runner

    @property
    def attention(self) -> AttentionBackend:
        """The attention backend; likewise."""
        return self.executor.runner.model.attention

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


def _require_methods(name: str, part: object, methods: tuple[str, ...]) -> None:
    """Raise TypeError unless `part` is None or has these methods."""
    missing = [method for method in methods if part is not None and not callable(getattr(part, method, None))]
    if missing:
        raise TypeError(f"{name} must be an object with {', '.join(methods)}(), got {part!r}.")

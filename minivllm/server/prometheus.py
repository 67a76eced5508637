"""/metrics: what happens in the engine, for Prometheus, under vLLM's names where vLLM has them.

Two kinds of numbers. Gauges and most counters are read from the engine's statistics when Prometheus asks.
The rest has to be kept up as things happen: `StepMetrics` is told about every step and every last output, in
the engine's thread::

    step 1    a prompt is done, first token      time_to_first_token = now - arrival; prompt_tokens += length
    step 2    next token                         inter_token_latency = now - the step before
    step 3    last token, last output            e2e_request_latency = now - arrival; all of `OF_REQUESTS`

A request that is aborted has no last output, and is in no histogram of whole requests.

vLLM V1: `vllm/v1/metrics/loggers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from minivllm.metrics.stats import EngineStats
from minivllm.outputs import RequestMetrics, RequestOutput
from minivllm.scheduler import Scheduler, Updated
from minivllm.scheduler_output import SchedulerOutput
from minivllm.sequence import Sequence, SequenceGroup
from minivllm.server.async_llm import AsyncLLM

LABELS = ("model_name", "engine")
# vLLM's buckets, in seconds.
FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
# vLLM ends this series at the model's length.
LENGTH_BUCKETS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
# Of each request that is finished: name -> (buckets, what is observed; None: it has no such thing).
OF_REQUESTS: dict[str, tuple[tuple[float, ...], Callable[[RequestOutput, RequestMetrics], float | None]]] = {
    "e2e_request_latency_seconds": (REQUEST_BUCKETS, lambda _, at: at.finished_time - at.arrival_time),
    "request_queue_time_seconds": (REQUEST_BUCKETS, lambda _, at: at.first_scheduled_time - at.arrival_time),
    "request_prefill_time_seconds": (
        REQUEST_BUCKETS,
        lambda _, at: at.first_token_time - at.first_scheduled_time,
    ),
    "request_decode_time_seconds": (REQUEST_BUCKETS, lambda _, at: at.finished_time - at.first_token_time),
    "request_time_per_output_token_seconds": (TOKEN_BUCKETS, lambda _, at: at.time_per_output_token),
    "request_prompt_tokens": (LENGTH_BUCKETS, lambda output, _: len(output.prompt_token_ids)),
    "request_generation_tokens": (LENGTH_BUCKETS, lambda _, at: at.num_output_tokens),
}
# Why a request ends that is not aborted.
REASONS = ("stop", "length")
# Name -> (attribute of `EngineStats`, text). A counter is shown with `_total` at its end.
GAUGES = {
    "vllm:num_requests_running": ("num_running", "Requests that hold blocks."),
    "vllm:num_requests_waiting": ("num_without_blocks", "Requests that wait for blocks."),
    "vllm:kv_cache_usage_perc": ("block_usage", "Share of the KV blocks that are held, from 0 to 1."),
    "minivllm:kv_token_usage_perc": ("token_usage", "Share of the KV slots that hold a token, from 0 to 1."),
}
COUNTERS = {
    "vllm:num_preemptions": ("num_preemptions", "Requests that had to give their blocks back."),
    "minivllm:computed_prompt_tokens": (
        "num_computed_prompt_tokens",
        "Prompt tokens computed: not those found in the prefix cache; again after a preemption.",
    ),
    "vllm:generation_tokens": ("num_generated_tokens", "Tokens sampled."),
    "vllm:prefix_cache_queries": ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits": ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
}


class StepMetrics:
    """What each step did for each request, and how each request went.

    `record` is for the engine (see `StepObserver`), `note_finished` for `AsyncLLM`.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.registry = CollectorRegistry()
        self._last_token: dict[int, float] = {}  # seq_id -> when its newest token came
        self._first_token = self._histogram("time_to_first_token_seconds", FIRST_TOKEN_BUCKETS)
        self._between_tokens = self._histogram("inter_token_latency_seconds", TOKEN_BUCKETS)
        self._of_requests = {
            name: self._histogram(name, buckets) for name, (buckets, _) in OF_REQUESTS.items()
        }
        self._prompt_tokens = Counter(
            "vllm:prompt_tokens", "Prompt tokens, when the first token comes.", LABELS, registry=self.registry
        ).labels(model_name, "0")
        finished = Counter(
            "vllm:request_success", "Finished requests.", (*LABELS, "finished_reason"), registry=self.registry
        )
        # All are shown from the start: of a counter that appears with its first 1, no rate sees that 1.
        self._finished = {reason: finished.labels(model_name, "0", reason) for reason in REASONS}

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            f"vllm:{name}", f"Histogram of {name}.", LABELS, registry=self.registry, buckets=buckets
        )
        return family.labels(self.model_name, "0")

    def record(self, plan: SchedulerOutput, updated: Updated, scheduler: Scheduler, now: float) -> None:
        """Take in one step."""
        for group, seqs in updated:
            for seq in seqs:
                self._note_token(group, seq, now)
        # Those that were aborted leave without a step of their own.
        if len(self._last_token) > 4 * scheduler.max_num_seqs:
            live = {seq.seq_id for group in scheduler.groups.values() for seq in group.unfinished}
            self._last_token = {seq_id: at for seq_id, at in self._last_token.items() if seq_id in live}

    def note_finished(self, output: RequestOutput) -> None:
        """Take in the last output of a request, which says when things happened to it."""
        for name, (_, measure) in OF_REQUESTS.items():
            if (value := measure(output, output.metrics)) is not None:
                self._of_requests[name].observe(value)

    def _note_token(self, group: SequenceGroup, seq: Sequence, now: float) -> None:
        before = self._last_token.pop(seq.seq_id, None)
        if before is not None:
            self._between_tokens.observe(now - before)
        elif seq.num_output_tokens == 1 and seq.index == 0:
            self._first_token.observe(now - group.arrival_time)
            self._prompt_tokens.inc(group.num_prompt_tokens)
        if seq.status.is_finished:
            self._finished[seq.status.finish_reason].inc()
        else:
            self._last_token[seq.seq_id] = now


class _Snapshot:
    """The engine's statistics as Prometheus wants them."""

    def __init__(self, stats: EngineStats, model_name: str) -> None:
        self._stats, self._labels = stats, (model_name, "0")

    def collect(self) -> Iterable[Metric]:
        for kind, families in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (attribute, text) in families.items():
                family = kind(name, text, labels=LABELS)
                family.add_metric(self._labels, getattr(self._stats, attribute))
                yield family


def metrics_routes(engine: AsyncLLM, metrics: StepMetrics) -> APIRouter:
    """GET /metrics."""
    router = APIRouter()

    @router.get("/metrics")
    async def show() -> Response:
        now = CollectorRegistry()
        now.register(_Snapshot(await engine.call(lambda inner: inner.stats()), metrics.model_name))
        text = generate_latest(now) + generate_latest(metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router

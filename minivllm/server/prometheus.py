"""/metrics: what happens in the engine, for Prometheus, under vLLM's names, so that its dashboards work.

Two kinds of numbers. Gauges and most counters are read from the engine's statistics when Prometheus asks.
The rest has to be kept up step by step: `StepMetrics` is told about every step, in the engine's thread::

    step 1    a prompt is done, first token      time_to_first_token = now - arrival; prompt_tokens += length
    step 2    next token                         inter_token_latency = now - the step before
    step 3    last token                         e2e_request_latency = now - arrival

vLLM V1: `vllm/v1/metrics/loggers.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from minivllm.metrics.stats import EngineStats
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
# Name -> (field of `EngineStats`, or several to add up; text). A counter is shown with `_total` at its end.
GAUGES = {
    "vllm:num_requests_running": ("num_running", "Requests that hold blocks."),
    # vLLM has no swapped requests any more; ours are among those that wait, as in the log line.
    "vllm:num_requests_waiting": ("num_waiting num_swapped", "Requests that wait for blocks."),
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
    """What each step did for each request; told by the engine, see `StepObserver`."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.registry = CollectorRegistry()
        self._last_token: dict[int, float] = {}  # seq_id -> when its newest token came
        self._first_token = self._histogram("time_to_first_token", FIRST_TOKEN_BUCKETS)
        self._between_tokens = self._histogram("inter_token_latency", TOKEN_BUCKETS)
        self._whole_request = self._histogram("e2e_request_latency", REQUEST_BUCKETS)
        self._prompt_tokens = Counter(
            "vllm:prompt_tokens", "Prompt tokens, when the first token comes.", LABELS, registry=self.registry
        ).labels(model_name, "0")
        self._finished = Counter(
            "vllm:request_success", "Finished requests.", (*LABELS, "finished_reason"), registry=self.registry
        )

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            f"vllm:{name}_seconds", f"Histogram of {name}.", LABELS, registry=self.registry, buckets=buckets
        )
        return family.labels(self.model_name, "0")

    def record(self, plan: SchedulerOutput, updated: Updated, scheduler: Scheduler, now: float) -> None:
        """Take in one step."""
        for group, seqs in updated:
            for seq in seqs:
                self._note_token(group, seq, now)
            if group.is_finished:
                self._whole_request.observe(now - group.arrival_time)
        # Those that were aborted leave without a step of their own.
        if len(self._last_token) > 4 * scheduler.max_num_seqs:
            live = {seq.seq_id for group in scheduler.groups.values() for seq in group.unfinished}
            self._last_token = {seq_id: at for seq_id, at in self._last_token.items() if seq_id in live}

    def _note_token(self, group: SequenceGroup, seq: Sequence, now: float) -> None:
        before = self._last_token.pop(seq.seq_id, None)
        if before is not None:
            self._between_tokens.observe(now - before)
        elif seq.num_output_tokens == 1 and seq.index == 0:
            self._first_token.observe(now - group.arrival_time)
            self._prompt_tokens.inc(group.num_prompt_tokens)
        if seq.status.is_finished:
            self._finished.labels(self.model_name, "0", seq.status.finish_reason).inc()
        else:
            self._last_token[seq.seq_id] = now


class _Snapshot:
    """The engine's statistics as Prometheus wants them."""

    def __init__(self, stats: EngineStats, model_name: str) -> None:
        self._stats, self._labels = stats, (model_name, "0")

    def collect(self) -> Iterable[Metric]:
        for kind, families in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (attributes, text) in families.items():
                family = kind(name, text, labels=LABELS)
                value = sum(getattr(self._stats, attribute) for attribute in attributes.split())
                family.add_metric(self._labels, value)
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

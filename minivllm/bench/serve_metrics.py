"""The measures of serving, from the moments at which things happened, and vLLM's table of them.

One request that arrives at second 2 and gets its tokens at 3.0, 3.5 and 4.5::

    TTFT   3.0 - 2 = 1.0              time to first token
    TPOT   (4.5 - 3.0) / 2 = 0.75     time per output token after the first, the mean of ...
    ITL    0.5 and 1.0                ... the inter-token latencies
    E2EL   4.5 - 2 = 2.5              end-to-end latency
    normalized latency  2.5 / 3       E2EL per output token, the paper's measure

Which one to look at: TTFT is what a user of a chat notices first, and grows with the queue; TPOT is the
reading speed (200 ms are 5 tokens per second); ITL shows what TPOT averages away, a single long pause while
another user's prompt is computed; E2EL matters to a program that waits for the whole answer. TTFT, TPOT and
the normalized latency are the engine's own definitions, `outputs.RequestMetrics`.

All in seconds, except where a name ends in `_ms`. vLLM V1: `calculate_metrics` in `vllm/benchmarks/serve.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivllm.bench.report import table
from minivllm.outputs import RequestMetrics

# Those that a request has one value of. ITL has many, and vLLM has no limit on it either.
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True)
class Served:
    """When one request arrived and when each of its tokens came, in seconds from the start of the run.

    Attributes:
        arrival: when it arrived, whether the engine was ready or not.
        num_prompt_tokens: for the totals.
        tokens: one time for each output token, ascending, at least one.
    """

    arrival: float
    num_prompt_tokens: int
    tokens: tuple[float, ...]

    def measures(self) -> dict[str, float | None]:
        """All measures that have one value per request; `tpot` is None with a single token."""
        last = self.tokens[-1]
        metrics = RequestMetrics(self.arrival, self.arrival, self.tokens[0], last, len(self.tokens))
        return {
            "ttft": metrics.time_to_first_token,
            "tpot": metrics.time_per_output_token,
            "e2el": last - self.arrival,
            "normalized_latency": metrics.normalized_latency,
        }


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """["ttft:2000", "tpot:200"] -> {"ttft": 2000.0, "tpot": 200.0}, in milliseconds.

    Raises:
        ValueError: not of that form, or a measure that has no limit here.
    """
    limits = {}
    for text in texts:
        name, _, value = text.partition(":")
        try:
            limits[name] = float(value)
        except ValueError:
            raise ValueError(f"--goodput needs milliseconds after the colon, got {text!r}.") from None
        if name not in GOODPUT_METRICS:
            raise ValueError(f"--goodput takes {', '.join(GOODPUT_METRICS)} as METRIC:MS; got {text!r}.")
    return limits


def meets(served: Served, limits: dict[str, float]) -> bool:
    """Whether a request stayed within every limit. One token has no TPOT, so it cannot miss it.

    Example with the request above and ttft:2000 tpot:200: its TTFT of 1,000 ms is within the limit, its TPOT
    of 750 ms is not, so it does not count.
    """
    measures = served.measures()
    return all(1e3 * (measures[name] or 0.0) <= limit for name, limit in limits.items())


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile; nothing measured gives zeros, as in vLLM.

    The 99th percentile is the wait of the unluckiest user in a hundred, which a mean hides; with fewer than a
    hundred values it is close to the largest.
    """
    values = list(values) or [0.0]
    median, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {"mean": float(np.mean(values)), "median": median, "p90": p90, "p99": p99}


def summarize(served: Sequence[Served], seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    """All measures of one run that took `seconds`.

    Args:
        served: every request, all finished.
        seconds: from the start of the run to the last token; rates are per this time.
        limits: milliseconds; with none, `goodput` is None and not 0, which would mean that no user was
            satisfied.

    Returns:
        Numbers and distributions by name, ready for JSON. `output_tokens_per_second` cannot exceed what
        arrives: below capacity it measures the load, not the engine.
    """
    num_output = sum(len(each.tokens) for each in served)
    num_input = sum(each.num_prompt_tokens for each in served)
    measures = [each.measures() for each in served]
    columns = {name: [each[name] for each in measures if each[name] is not None] for name in measures[0]}
    # All gaps of all requests in one pot: long outputs count for more, as there are more of their tokens.
    columns["itl"] = [gap for each in served for gap in np.diff(each.tokens).tolist()]
    return {
        "completed": len(served),
        "seconds": seconds,
        "num_input_tokens": num_input,
        "num_output_tokens": num_output,
        "requests_per_second": len(served) / seconds,
        "goodput": sum(meets(each, limits) for each in served) / seconds if limits else None,
        "output_tokens_per_second": num_output / seconds,
        "total_tokens_per_second": (num_input + num_output) / seconds,
        **{name: distribution(values) for name, values in columns.items()},
    }


# -- printing ---------------------------------------------------------------------------------------


def rate_of(point: dict[str, Any]) -> float:
    """The request rate of a point; JSON has None for an infinite one."""
    return math.inf if point["request_rate"] is None else point["request_rate"]


def vllm_table(point: dict[str, Any]) -> str:
    """vLLM's "Serving Benchmark Result", with the paper's normalized latency at its end.

    Args:
        point: of `summarize`, with `request_rate` added by the caller.
    """
    rows = [
        ("Successful requests:", f"{point['completed']}"),
        ("Request rate configured (RPS):", f"{rate_of(point):.2f}"),
        ("Benchmark duration (s):", f"{point['seconds']:.2f}"),
        ("Total input tokens:", f"{point['num_input_tokens']}"),
        ("Total generated tokens:", f"{point['num_output_tokens']}"),
        ("Request throughput (req/s):", f"{point['requests_per_second']:.2f}"),
        *([] if point["goodput"] is None else [("Request goodput (req/s):", f"{point['goodput']:.2f}")]),
        ("Output token throughput (tok/s):", f"{point['output_tokens_per_second']:.2f}"),
        ("Total token throughput (tok/s):", f"{point['total_tokens_per_second']:.2f}"),
    ]
    lines = [f"{' Serving Benchmark Result ':=^50}", *(f"{label:<40} {value:<10}" for label, value in rows)]
    for key, title, label in (
        ("ttft", "Time to First Token", " TTFT (ms):"),
        ("tpot", "Time per Output Token (excl. 1st token)", " TPOT (ms):"),
        ("itl", "Inter-token Latency", " ITL (ms):"),
        ("e2el", "End-to-end Latency", " E2EL (ms):"),
        ("normalized_latency", "Normalized Latency", " (ms/token):"),
    ):
        lines.append(f"{title:-^50}")
        lines += [
            f"{name.capitalize() + label:<40} {1e3 * value:<10.2f}" for name, value in point[key].items()
        ]
    return "\n".join([*lines, "=" * 50])


def overview(points: Sequence[dict[str, Any]]) -> str:
    """One line for each policy and rate: the curve of figure 12 in numbers, times in milliseconds.

    Where TTFT p99 leaves TTFT p50 behind, the queue has begun to grow.
    """
    rows = [("policy", "req/s", "ms/token", "TTFT p50", "TTFT p99", "TPOT p50", "tok/s")]
    times = (("normalized_latency", "mean"), ("ttft", "median"), ("ttft", "p99"), ("tpot", "median"))
    for point in points:
        cells = [f"{1e3 * point[key][statistic]:.1f}" for key, statistic in times]
        tokens = f"{point['output_tokens_per_second']:.1f}"
        rows.append((point["backend"], f"{rate_of(point):.2f}", *cells, tokens))
    return table(rows)

"""The measures of serving, from the moments at which things happened, and vLLM's table of them.

One request that arrives at second 2 and gets its tokens at 3.0, 3.5 and 4.5::

    TTFT   3.0 - 2 = 1.0              time to first token
    TPOT   (4.5 - 3.0) / 2 = 0.75     time per output token after the first, the mean of ...
    ITL    0.5 and 1.0                ... the inter-token latencies
    E2EL   4.5 - 2 = 2.5              end-to-end latency
    normalized latency  2.5 / 3       E2EL per output token, the paper's measure

Which one to look at: TTFT is what a user of a chat notices first, and grows with the queue; TPOT is the
reading speed (200 ms are 5 tokens a second); ITL shows what TPOT averages away, a single long pause while
somebody else's prompt is computed; E2EL matters to a program that waits for the whole answer.

All in seconds, except where a name ends in `_ms`. Pure Python.

vLLM V1: `calculate_metrics` in `vllm/benchmarks/serve.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from minivllm.bench.report import percentile

# Those that a request has one value of. ITL has many, and vLLM has no limit on it either.
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
# Columns of vLLM's table.
_WIDTH = 50


@dataclass(frozen=True)
class RequestTimes:
    """When one request arrived and when each of its tokens came, in seconds from the start of the run.

    Attributes:
        arrival: when it arrived, whether the engine was ready or not.
        num_prompt_tokens: for the totals.
        tokens: one time for each output token, ascending, never empty once the request is finished.
    """

    arrival: float
    num_prompt_tokens: int
    tokens: tuple[float, ...]

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.tokens[0] - self.arrival

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None if there is only one.

        All but the first, whose time is the TTFT: with a long queue it would drown the others.
        """
        if len(self.tokens) < 2:
            return None
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)

    @property
    def itls(self) -> list[float]:
        """Seconds between consecutive tokens."""
        return [later - earlier for earlier, later in pairwise(self.tokens)]

    @property
    def e2el(self) -> float:
        """Seconds from arrival to the last token."""
        return self.tokens[-1] - self.arrival

    @property
    def normalized_latency(self) -> float:
        """Seconds from arrival to the last token, per output token."""
        return self.e2el / len(self.tokens)


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """["ttft:2000", "tpot:200"] -> {"ttft": 2000.0, "tpot": 200.0}, milliseconds.

    Raises:
        ValueError: not of that form, or a measure that has no limit here.

    A name that comes twice: the last one counts.
    """
    limits = {}
    for text in texts:
        name, _, value = text.partition(":")
        if name not in GOODPUT_METRICS:
            raise ValueError(
                f"--goodput takes {', '.join(GOODPUT_METRICS)}, each as METRIC:MS; got {text!r}."
            )
        try:
            limits[name] = float(value)
        except ValueError:
            raise ValueError(f"--goodput needs milliseconds after the colon, got {text!r}.") from None
    return limits


def meets(times: RequestTimes, limits: dict[str, float]) -> bool:
    """Whether a request stayed within every limit. One token has no TPOT, so it cannot miss it.

    Example with the request above and ttft:2000 tpot:200: its TTFT of 1,000 ms is within the limit, its TPOT
    of 750 ms is not, so it does not count.

    Args:
        times: of one request.
        limits: milliseconds by measure; no limits, no miss.
    """
    measured = {"ttft": times.ttft, "tpot": times.tpot or 0.0, "e2el": times.e2el}
    return all(1e3 * measured[name] <= limit for name, limit in limits.items())


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, 90th and 99th percentile; nothing measured gives zeros, as in vLLM.

    The 99th percentile is the wait of the unluckiest user in a hundred, which a mean hides; with fewer than a
    hundred values it is close to the largest.
    """
    values = list(values) or [0.0]
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "p90": percentile(values, 90),
        "p99": percentile(values, 99),
    }


def summarize(times: Sequence[RequestTimes], seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    """All measures of one run that took `seconds`.

    Args:
        times: of every request, all finished.
        seconds: from the start of the run to the last token; rates are per this time.
        limits: milliseconds; with none, `goodput` is None and not 0, which would mean that nobody was
            satisfied.

    Returns:
        Numbers and distributions by name, ready for JSON. `output_tokens_per_second` cannot exceed what
        arrives: below capacity it measures the load, not the engine.
    """
    num_output = sum(len(each.tokens) for each in times)
    num_input = sum(each.num_prompt_tokens for each in times)
    # One-token outputs have none. As zeros they would make everybody look faster.
    tpots = [each.tpot for each in times if each.tpot is not None]
    return {
        "completed": len(times),
        "seconds": seconds,
        "num_input_tokens": num_input,
        "num_output_tokens": num_output,
        "requests_per_second": len(times) / seconds,
        "goodput": sum(meets(each, limits) for each in times) / seconds if limits else None,
        "output_tokens_per_second": num_output / seconds,
        "total_tokens_per_second": (num_input + num_output) / seconds,
        "ttft": distribution([each.ttft for each in times]),
        "tpot": distribution(tpots),
        # All gaps of all requests in one pot: long outputs count for more, as there are more of their tokens.
        "itl": distribution([gap for each in times for gap in each.itls]),
        "e2el": distribution([each.e2el for each in times]),
        "normalized_latency": distribution([each.normalized_latency for each in times]),
    }


def table(summary: dict[str, Any]) -> str:
    """vLLM's "Serving Benchmark Result", with the paper's normalized latency at its end.

    Args:
        summary: of `summarize`, with `request_rate` added by the caller (None for an infinite one).
    """
    lines = [f"{' Serving Benchmark Result ':=^{_WIDTH}}"]

    def add(label: str, value: float, decimals: int = 2) -> None:
        lines.append(f"{label:<40} {value:<10.{decimals}f}")

    add("Successful requests:", summary["completed"], 0)
    add(
        "Request rate configured (RPS):",
        math.inf if summary["request_rate"] is None else summary["request_rate"],
    )
    add("Benchmark duration (s):", summary["seconds"])
    add("Total input tokens:", summary["num_input_tokens"], 0)
    add("Total generated tokens:", summary["num_output_tokens"], 0)
    add("Request throughput (req/s):", summary["requests_per_second"])
    if summary["goodput"] is not None:
        add("Request goodput (req/s):", summary["goodput"])
    add("Output token throughput (tok/s):", summary["output_tokens_per_second"])
    add("Total token throughput (tok/s):", summary["total_tokens_per_second"])
    for key, name, title in (
        ("ttft", "TTFT", "Time to First Token"),
        ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
        ("itl", "ITL", "Inter-token Latency"),
        ("e2el", "E2EL", "End-to-end Latency"),
    ):
        lines.append(f"{title:-^{_WIDTH}}")
        for statistic in ("mean", "median", "p90", "p99"):
            label = statistic.capitalize()
            add(f"{label} {name} (ms):", 1e3 * summary[key][statistic])
    lines.append(f"{'Normalized Latency':-^{_WIDTH}}")
    for statistic in ("mean", "median", "p90", "p99"):
        add(f"{statistic.capitalize()} (ms/token):", 1e3 * summary["normalized_latency"][statistic])
    lines.append("=" * _WIDTH)
    return "\n".join(lines)


def overview(points: Sequence[dict[str, Any]]) -> str:
    """One line for each policy and rate: the curve of figure 12 in numbers.

    All times in milliseconds. Where TTFT p99 leaves TTFT p50 behind, the queue has begun to grow.
    """
    lines = ["policy                 req/s  ms/token  TTFT p50  TTFT p99  TPOT p50   tok/s"]
    for point in points:
        rate = math.inf if point["request_rate"] is None else point["request_rate"]
        lines.append(
            f"{point['backend']:<20}{rate:>8.2f}{1e3 * point['normalized_latency']['mean']:>10.1f}"
            f"{1e3 * point['ttft']['median']:>10.1f}{1e3 * point['ttft']['p99']:>10.1f}"
            f"{1e3 * point['tpot']['median']:>10.1f}{point['output_tokens_per_second']:>8.1f}"
        )
    return "\n".join(lines)

"""Serving: requests arrive over time, ready or not, and the wait of each user is measured.

One request that arrives at second 2 and gets its tokens at 3.0, 3.5 and 4.5::

    TTFT   3.0 - 2 = 1.0              time to first token: what a user of a chat notices first
    TPOT   (4.5 - 3.0) / 2 = 0.75     time per output token after the first, the mean of ...
    ITL    0.5 and 1.0                ... the inter-token latencies: a pause that TPOT averages away
    E2EL   4.5 - 2 = 2.5              end-to-end latency, for a program that waits for the whole answer
    normalized latency  2.5 / 3       E2EL per output token, the paper's measure

Below the engine's capacity the normalized latency stays flat as the request rate rises; beyond, the queue
grows for as long as the run lasts. A better engine moves the knee to the right::

    normalized  |                /            |     Poisson arrivals, open loop: they are drawn beforehand.
    latency     |    static     /             |     A benchmark that sends a request when the last is
                |_____________/_____________/__     answered slows down with the engine: no knee to see.

    $ python -m minivllm bench serve --request-rate 0.25 0.5 1 2 --num-prompts 64 --plot serve.png

Each point is measured `--repeats` times, each time with arrivals drawn anew. What is reported is the median
round; the others stand beside it and in the figure, where they show how much of a difference is chance.

There is no HTTP server: one loop adds the requests whose time has come, and steps. `--goodput ttft:2000
tpot:200` counts the requests that meet all limits (milliseconds). Times are in seconds, except in `..._ms`.
Paper: section 6.1 and figure 12. vLLM V1: `vllm/benchmarks/serve.py`, whose table this prints.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivllm.bench import options
from minivllm.bench.backends import BASELINES, EAGER, FLOAT32, OURS, TRACED, make_baseline, prompts_of
from minivllm.bench.report import Result, describe, finish, new_result, table
from minivllm.bench.workloads import BenchRequest, with_arrivals
from minivllm.engine import LLMEngine
from minivllm.outputs import RequestMetrics
from minivllm.sampling_params import RequestOutputKind, SamplingParams

# Those that a request has one value of. ITL has many, and vLLM has no limit on it either.
GOODPUT_METRICS = ("ttft", "tpot", "e2el")
# Of a point: a value for each round. Mean latency in seconds per token; and, from `bench http`, two more.
ROUNDS, SPEEDS, FIRST_TOKENS = "rounds_normalized_latency", "rounds_tokens_per_second", "rounds_ttft_median"


@dataclass(frozen=True)
class Served:
    """When one request arrived and each of its tokens came, in seconds from the start; at least one token."""

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The traced backend is left out: what a trace costs is a question about throughput."""
    options.add_workload_arguments(parser)
    options.add_engine_arguments(parser)
    options.add_output_arguments(parser, plot=True)
    policies = [name for name in BASELINES if name not in (TRACED, EAGER, FLOAT32)]
    add = parser.add_argument
    add("--backend", nargs="+", choices=policies, default=[OURS], help="whose policies")
    add("--request-rate", nargs="+", type=float, default=[1.0], help="requests per second; inf: all at once")
    add("--burstiness", type=float, default=1.0, help="1: Poisson; below: bunched; above: regular")
    text = "limits, e.g. ttft:2000 tpot:200 e2el:9000"
    add("--goodput", nargs="+", default=[], metavar="METRIC:MS", help=text)
    options.add_counts(parser, repeats=(3, "rounds per point"))


def run(args: argparse.Namespace) -> int:
    """Measure every policy at every rate, in turns, with the same requests at the same moments; -> 0.

    Each round draws its arrivals anew, so the rounds differ by chance as two days of traffic would.
    """
    limits, requests = parse_goodput(args.goodput), options.requests_from(args)
    workload = options.describe_workload(args, requests)
    result = new_result("serve", model=args.model, workload=workload, goodput_limits_ms=limits, points=[])
    # All at once, each with its weights and KV memory, so that they can take turns at each rate.
    engines = {
        name: make_baseline(name, args.model, options.engine_options(args)).llm.llm_engine
        for name in dict.fromkeys(args.backend)
    }
    for engine in engines.values():
        serve(engine, requests[:2])  # to warm up: first use of memory and kernels is no part of a latency
    for rate in args.request_rate:
        rounds: dict[str, list[Result]] = {name: [] for name in engines}
        for number in range(args.repeats):
            arriving = with_arrivals(requests, rate, args.burstiness, args.seed + number)
            for name, engine in engines.items():
                rounds[name].append(summarize(*serve(engine, arriving), limits))
        for name, points in rounds.items():
            point = {"backend": name, "request_rate": rate if math.isfinite(rate) else None}
            point |= median_round(points)
            result["points"].append(point)
            print(f"\n{name}\n{vllm_table(point)}")
    print()
    return finish(args, result, print_report, plot)


def median_round(points: Sequence[Result]) -> Result:
    """The round of the middle normalized latency, with that of every round: [3, 1, 2] gives the last one."""
    latencies = [point["normalized_latency"]["mean"] for point in points]
    middle = sorted(range(len(points)), key=latencies.__getitem__)[len(points) // 2]
    return {**points[middle], ROUNDS: latencies}


def serve(engine: LLMEngine, requests: list[BenchRequest]) -> tuple[list[Served], float]:
    """Feed the idle engine as `requests` arrive; -> when each got its tokens, and the seconds in all.

    A arrives at 1.1, while a step runs from 1.0 to 1.3      added at 1.3      first token at 1.6
                                                             its TTFT, 0.5, has the 0.2 of waiting in it
    """
    engine.reset_prefix_cache()
    # DELTA: an output for each token, so that each can be timed.
    settings = {"temperature": 0.0, "ignore_eos": True, "detokenize": False,
                "output_kind": RequestOutputKind.DELTA}  # fmt: skip
    prompts, token_times = prompts_of(requests), [[] for _ in requests]
    waiting = sorted(range(len(requests)), key=lambda i: requests[i].arrival_time, reverse=True)
    start = time.perf_counter()
    # During a step none can be added; a server's queue would wait for the same step.
    while waiting or engine.has_unfinished_requests():
        now = time.perf_counter() - start
        while waiting and requests[waiting[-1]].arrival_time <= now:
            i = waiting.pop()
            params = SamplingParams(max_tokens=requests[i].output_len, **settings)
            # The arrival counts, not this moment: the wait for the running step belongs to the latency.
            engine.add_request(str(i), prompts[i], params, arrival_time=start + requests[i].arrival_time)
        if not engine.has_unfinished_requests():
            time.sleep(requests[waiting[-1]].arrival_time - now)  # idle steps would burn a core for nothing
            continue
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:  # all tokens of a step come at one moment
            token_times[int(output.request_id)] += [now] * len(output.outputs[0].token_ids)
    seconds = time.perf_counter() - start
    served = [
        Served(request.arrival_time, len(request.prompt_token_ids), tuple(tokens))
        for request, tokens in zip(requests, token_times, strict=True)
    ]
    return served, seconds


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """["ttft:2000", "tpot:200"] -> {"ttft": 2000.0, "tpot": 200.0}, in milliseconds; else a ValueError."""
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
    """Whether a request stayed within every limit; with a single token it has no TPOT and cannot miss it."""
    measures = served.measures()
    return all(1e3 * (measures[name] or 0.0) <= limit for name, limit in limits.items())


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, and 90th and 99th percentile; nothing measured gives zeros, as in vLLM."""
    values = list(values) or [0.0]
    median, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return {"mean": float(np.mean(values)), "median": median, "p90": p90, "p99": p99}


def summarize(served: Sequence[Served], seconds: float, limits: dict[str, float]) -> dict[str, Any]:
    """All measures of one run that took `seconds`. `goodput` without `limits` is None and not 0, which would
    mean that no user was satisfied; `output_tokens_per_second` cannot exceed what arrives.
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


def print_report(result: Result) -> None:
    """Print the curves in numbers, from what `--output-json` writes."""
    print(describe(result["provenance"]))
    print(f"{options.workload_text(result)} at each rate")
    print(overview(result["points"]))


def vllm_table(point: dict[str, Any]) -> str:
    """vLLM's "Serving Benchmark Result" of a summary with its `request_rate`, and the paper's latency."""
    rows = [
        ("Successful requests:", f"{point['completed']}"),
        ("Request rate configured (RPS):", f"{(point['request_rate'] or math.inf):.2f}"),
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
        lines += [f"{name.capitalize() + label:<40} {1e3 * time:<10.2f}" for name, time in point[key].items()]
    return "\n".join([*lines, "=" * 50])


def overview(points: Sequence[dict[str, Any]]) -> str:
    """The curve of figure 12 in numbers. Where TTFT p99 leaves p50 behind, the queue has begun to grow.

    Of several rounds this is the median one, and a column more gives the latency of all. Rate and median TTFT
    are medians over the rounds, where these are known: two policies may have their median in two rounds, and
    how many tokens were asked for per second depends on the round.
    """
    several = any(len(point.get(ROUNDS, ())) > 1 for point in points)
    heads = ("policy", "req/s", "ms/token", "TTFT p50", "TTFT p99", "TPOT p50", "tok/s")
    rows = [(*heads, "ms/token of the rounds") if several else heads]
    times = (("normalized_latency", "mean"), ("ttft", "median"), ("ttft", "p99"), ("tpot", "median"))
    for point in points:
        cells = [f"{1e3 * point[key][statistic]:.1f}" for key, statistic in times]
        cells.append(f"{np.median(point.get(SPEEDS, point['output_tokens_per_second'])):.1f}")
        if FIRST_TOKENS in point:
            cells[1] = f"{1e3 * np.median(point[FIRST_TOKENS]):.1f}"
        if several:
            cells.append(" ".join(f"{1e3 * latency:.0f}" for latency in point.get(ROUNDS, ())))
        rows.append((point["backend"], f"{(point['request_rate'] or math.inf):.2f}", *cells))
    return table(rows)


def plot(result: Result, path: str) -> None:
    """Figure 12: a line for each policy, a mark for each round; an infinite rate has no place on the axis."""
    from minivllm.viz.rates import rate_curves

    curves: dict[str, dict[float, Sequence[float]]] = {}
    for point in result["points"]:
        if (rate := point["request_rate"]) is not None:
            rounds = point.get(ROUNDS) or [point["normalized_latency"]["mean"]]
            curves.setdefault(point["backend"], {})[rate] = rounds
    figure = rate_curves(curves)
    most = max((len(rounds) for curve in curves.values() for rounds in curve.values()), default=0)
    figure.axes[0].set(xlabel="request rate (requests/s)", ylabel="normalized latency (s/token)")
    where, workload = result["provenance"], result["workload"]
    several = f"marks: {most} rounds, each with arrivals of its own; line: medians"
    counted = "one round" if most == 1 else several
    text = f"{workload['num_prompts']} requests per point; {counted}\n{where['gpu'] or where['cpu']}"
    figure.axes[0].set_title(text, fontsize="small")
    figure.savefig(path)

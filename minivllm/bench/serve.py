"""Serving: requests arrive over time, whether the engine is ready or not, and each user's wait is measured.

Throughput says what a full engine can do. A service is never quite full, and its users feel something else:
how long until the first token, how long between tokens (`serve_metrics.py`), and what the paper plots, the
*normalized latency*: seconds from arrival to the last token, divided by the number of output tokens. Below
the engine's capacity it stays flat as the request rate rises; beyond, the queue grows for as long as the run
lasts, and the curve goes straight up. A better engine moves the knee to the right::

    normalized  |                /            |     Poisson arrivals, open loop: a user does not wait
    latency     |    static     /             |     for other users to be served before asking.
                |              |     paged   /
                |_____________/_____________/__  request rate

    $ python -m minivllm bench serve --request-rate 0.25 0.5 1 2 --num-prompts 64 --plot serve.png

Why an open loop: a benchmark that sends the next request when the last is answered slows down with the engine
and never shows the knee. Here arrivals are drawn beforehand and kept to, whatever the engine does. There is
no HTTP server: one loop adds the requests whose time has come, and steps. `--goodput ttft:2000 tpot:200`
counts the requests that meet all limits (milliseconds): goodput is a rate of *satisfied* users.

Paper: section 6.1 and figure 12. vLLM V1: `vllm/benchmarks/serve.py`, whose table this prints.
"""

from __future__ import annotations

import argparse
import math
import time

from minivllm.bench import options
from minivllm.bench.backends import BASELINES, OURS, TRACED, make_baseline, prompts_of
from minivllm.bench.report import Result, describe, finish, new_result
from minivllm.bench.serve_metrics import Served, overview, parse_goodput, summarize, vllm_table
from minivllm.bench.workloads import BenchRequest, with_arrivals
from minivllm.engine import LLMEngine
from minivllm.sampling_params import RequestOutputKind, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The traced backend is left out: what a trace costs is a question about throughput."""
    options.add_workload_arguments(parser)
    options.add_engine_arguments(parser)
    options.add_output_arguments(parser, plot=True)
    policies = [name for name in BASELINES if name != TRACED]
    add = parser.add_argument
    add("--backend", nargs="+", choices=policies, default=[OURS], help="whose policies")
    add("--request-rate", nargs="+", type=float, default=[1.0], help="requests per second; inf: all at once")
    add("--burstiness", type=float, default=1.0, help="1: Poisson; below: bunched; above: regular")
    add(
        "--goodput",
        nargs="+",
        default=[],
        metavar="METRIC:MS",
        help="limits, e.g. ttft:2000 tpot:200 e2el:9000",
    )


def run(args: argparse.Namespace) -> int:
    """Measure every policy at every rate, in turns, and report.

    Every rate is a run of its own, from an empty engine to an empty engine. All policies see the same
    requests at the same moments.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: an unknown measure in `--goodput`, or a rate that is not positive.
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
        arriving = with_arrivals(requests, rate, args.burstiness, args.seed)
        for name, engine in engines.items():
            # JSON knows no infinity.
            point = {"backend": name, "request_rate": rate if math.isfinite(rate) else None}
            point |= summarize(*serve(engine, arriving), limits)
            result["points"].append(point)
            print(f"\n{name}\n{vllm_table(point)}")
    print()
    return finish(args, result, print_report, plot)


def print_report(result: Result) -> None:
    """Print the curves in numbers, from what `--output-json` writes."""
    workload = result["workload"]
    print(describe(result["provenance"]))
    print(
        f"{result['model']}, workload {workload['name']}, seed {workload['seed']}, "
        f"{workload['num_prompts']} requests at each rate"
    )
    print(overview(result["points"]))


def serve(engine: LLMEngine, requests: list[BenchRequest]) -> tuple[list[Served], float]:
    """Feed the engine as the requests arrive, until all are answered.

    Args:
        engine: idle; its prefix cache is emptied first.
        requests: with the arrival times that count, in any order.

    Returns:
        When each request got its tokens, in order, and the seconds from the start to the last token.

    Example of the timeline, a step of 0.3 s running from 1.0 to 1.3::

        request A arrives at 1.1    added at 1.3, when the step is over     first token at 1.6
                                    its TTFT is 1.6 - 1.1 = 0.5: the 0.2 of waiting is in it
    """
    engine.reset_prefix_cache()
    settings = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
    # DELTA: an output for each token, so that each can be timed.
    settings["output_kind"] = RequestOutputKind.DELTA
    # Request ids are the places in `requests`, so results come out in the caller's order.
    prompts, token_times = prompts_of(requests), [[] for _ in requests]
    waiting = sorted(range(len(requests)), key=lambda i: requests[i].arrival_time, reverse=True)
    start = time.perf_counter()
    # One turn: the requests that have arrived are added, then one step. During a step none can be added, as
    # the engine computes in this thread; a server's queue would wait for the same step.
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


def plot(result: Result, path: str) -> None:
    """Normalized latency against request rate, a line for each policy: the paper's figure 12.

    Args:
        result: as for `print_report`; the infinite rate has no place on the axis.
        path: image file.
    """
    from minivllm.viz.style import INK, PALETTE, new_figure

    figure = new_figure(6, 4)
    axes = figure.subplots()
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in result["points"]:
        if (rate := point["request_rate"]) is not None:
            curves.setdefault(point["backend"], []).append((rate, point["normalized_latency"]["mean"]))
    # A colour, a marker and a dash each, so that the lines can be told apart in grey as well. From the end of
    # the palette, because a thin yellow line is hard to see.
    looks = zip(PALETTE[::-1], "os^DvP", ("-", "--", ":", "-.", "-", "--"), strict=False)
    for (name, points), (colour, marker, dash) in zip(curves.items(), looks, strict=False):
        look = {"color": colour, "linestyle": dash, "marker": marker, "markeredgecolor": INK}
        axes.plot(*zip(*points, strict=True), label=name, **look)
    axes.set_xlabel("request rate (requests/s)")
    axes.set_ylabel("normalized latency (s/token)")
    axes.set_ylim(bottom=0)  # so that twice the height is twice the wait
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(path)

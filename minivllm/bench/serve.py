"""Serving: requests arrive over time, whether the engine is ready or not, and each user's wait is measured.

Throughput says what a full engine can do. A service is never quite full, and its users feel something else:
how long until the first token (TTFT), how long between tokens (TPOT, ITL), and what the paper plots, the
*normalized latency*: seconds from arrival to the last token, divided by the number of output tokens. Below
the engine's capacity it stays flat as the request rate rises; beyond, the queue grows for as long as the run
lasts, and the curve goes straight up. A better engine moves the knee to the right::

    normalized  |                /            |     Poisson arrivals, open loop: a user does not wait
    latency     |    static     /             |     for other users to be served before asking.
                |              |     paged   /
                |_____________/_____________/__  request rate

    $ python -m minivllm bench serve --request-rate 0.25 0.5 1 2 --num-prompts 64 --plot serve.png

Why an open loop: a benchmark that sends the next request when the last is answered slows down with the engine
and never shows the knee. Here arrivals are drawn beforehand and kept to, whatever the engine does.

There is no HTTP server here: one loop adds the requests whose time has come, and steps. `--goodput ttft:2000
tpot:200` counts the requests that meet all limits (milliseconds): goodput is a rate of *satisfied* users.

Paper: section 6.1 and figure 12. vLLM V1: `vllm/benchmarks/serve.py`, whose table this prints.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from minivllm.bench.backends import BASELINES, TRACED, make_baseline
from minivllm.bench.options import (
    add_engine_arguments,
    add_output_arguments,
    add_workload_arguments,
    describe_workload,
    engine_options,
    requests_from,
    vocab_size_of,
)
from minivllm.bench.report import describe, provenance, write_json
from minivllm.bench.serve_metrics import RequestTimes, overview, parse_goodput, summarize, table
from minivllm.bench.workloads import BenchRequest, with_arrivals
from minivllm.engine import LLMEngine
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.weights.loader import load_tokenizer, resolve_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options.

    The traced backend is left out: what a trace costs is a question about throughput.
    """
    add_workload_arguments(parser)
    add_engine_arguments(parser)
    add_output_arguments(parser)
    parser.add_argument(
        "--backend",
        nargs="+",
        choices=[name for name in BASELINES if name != TRACED],
        default=["minivllm"],
        help="whose policies",
    )
    parser.add_argument(
        "--request-rate", nargs="+", type=float, default=[1.0], help="requests a second; inf: all at once"
    )
    parser.add_argument(
        "--burstiness", type=float, default=1.0, help="1: Poisson; below: bunched; above: regular"
    )
    parser.add_argument(
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
    limits = parse_goodput(args.goodput)
    folder = resolve_model(args.model)
    requests = requests_from(
        args,
        vocab_size_of(folder),
        lambda text: load_tokenizer(folder).encode(text, add_special_tokens=False),
    )
    # All at once, each with its weights and KV memory: they take turns at each rate, so that a machine that
    # slows down slows all of them.
    engines = {
        name: make_baseline(name, args.model, engine_options(args)).llm.llm_engine
        for name in dict.fromkeys(args.backend)
    }
    where = provenance()
    points: list[dict[str, Any]] = []
    for engine in engines.values():
        # Memory that is touched for the first time and kernels that are compiled are no part of anyone's
        # latency.
        serve(engine, requests[:2])  # to warm up
    for rate in args.request_rate:
        arriving = with_arrivals(requests, rate, args.burstiness, args.seed)
        for name, engine in engines.items():
            times, seconds = serve(engine, arriving)
            # JSON knows no infinity.
            point = {"backend": name, "request_rate": rate if math.isfinite(rate) else None}
            points.append(point | summarize(times, seconds, limits))
            print(f"\n{name}")
            print(table(points[-1]))
    result = {
        "benchmark": "serve",
        "provenance": where,
        "model": args.model,
        "workload": describe_workload(args, requests),
        "goodput_limits_ms": limits,
        "points": points,
    }
    print()
    print_report(result)
    if args.output_json:
        write_json(args.output_json, result)
    if args.plot:
        plot(points, args.plot)
    return 0


def print_report(result: dict[str, Any]) -> None:
    """Print the curves in numbers, from what `--output-json` writes."""
    workload = result["workload"]
    print(describe(result["provenance"]))
    print(
        f"{result['model']}, workload {workload['name']}, seed {workload['seed']}, "
        f"{workload['num_prompts']} requests at each rate"
    )
    print(overview(result["points"]))


def serve(engine: LLMEngine, requests: list[BenchRequest]) -> tuple[list[RequestTimes], float]:
    """Feed the engine as the requests arrive, until all are answered.

    Returns:
        The times of each request, in order, and the seconds from the start to the last token.

    Args:
        engine: idle; its prefix cache is emptied first.
        requests: with the arrival times that count, in any order.

    Example of the timeline, a step of 0.3 s running from 1.0 to 1.3::

        request A arrives at 1.1    added at 1.3, when the step is over     first token at 1.6
                                    its TTFT is 1.6 - 1.1 = 0.5: the 0.2 of waiting is in it
    """
    engine.reset_prefix_cache()
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=request.output_len,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,  # an output for each token, so that each can be timed
        )
        for request in requests
    ]
    # Request ids are the places in `requests`, so results come out in the caller's order.
    order = sorted(range(len(requests)), key=lambda i: requests[i].arrival_time)
    token_times: list[list[float]] = [[] for _ in requests]
    start = time.perf_counter()
    num_added = 0
    # One turn: whoever has arrived is added, then one step. During a step nothing can be added, as the engine
    # computes in this thread; a server's queue would wait for the same step.
    while num_added < len(requests) or engine.has_unfinished_requests():
        now = time.perf_counter() - start
        while num_added < len(requests) and requests[order[num_added]].arrival_time <= now:
            i = order[num_added]
            prompt = {"prompt_token_ids": list(requests[i].prompt_token_ids)}
            # The arrival counts, not this moment: the wait for the running step belongs to the latency.
            engine.add_request(str(i), prompt, params[i], arrival_time=start + requests[i].arrival_time)
            num_added += 1
        if not engine.has_unfinished_requests():
            # Nobody is there: until the next one arrives. Stepping an idle engine would burn a core for
            # nothing.
            time.sleep(requests[order[num_added]].arrival_time - now)
            continue
        outputs = engine.step()
        now = time.perf_counter() - start
        for output in outputs:
            # DELTA outputs hold only what is new, one token a step as a rule; all tokens of a step come at
            # one moment.
            token_times[int(output.request_id)] += [now] * len(output.outputs[0].token_ids)
    seconds = time.perf_counter() - start
    times = [
        RequestTimes(request.arrival_time, len(request.prompt_token_ids), tuple(tokens))
        for request, tokens in zip(requests, token_times, strict=True)
    ]
    return times, seconds


def plot(points: list[dict[str, Any]], path: str) -> None:
    """Normalized latency against request rate, a line for each policy: the paper's figure 12.

    Args:
        points: what `run` collected, one for each policy and rate; the infinite rate has no place on the
            axis.
        path: image file.
    """
    from matplotlib.figure import Figure

    from minivllm.viz.style import INK, PALETTE

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    finite = [point for point in points if point["request_rate"] is not None]
    names = dict.fromkeys(point["backend"] for point in finite)
    # A colour, a marker and a dash each, so that the lines can be told apart in grey as well. From the end of
    # the palette, because a thin yellow line is hard to see.
    looks = zip(PALETTE[::-1], "os^DvP", ("-", "--", ":", "-.", "-", "--"), strict=False)
    for name, (colour, marker, dash) in zip(names, looks, strict=False):
        mine = [point for point in finite if point["backend"] == name]
        axes.plot(
            [point["request_rate"] for point in mine],
            [point["normalized_latency"]["mean"] for point in mine],
            label=name,
            color=colour,
            linestyle=dash,
            marker=marker,
            markeredgecolor=INK,
        )
    axes.set_xlabel("request rate (requests/s)")
    axes.set_ylabel("normalized latency (s/token)")
    # From zero, so that twice the height is twice the wait.
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.savefig(path, dpi=150)

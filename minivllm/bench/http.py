"""Serving over HTTP: the same requests at the same moments to our server, to vLLM's, and to the bare engine.

    $ python -m minivllm bench http --backend offline minivllm vllm --request-rate 1 2 4 inf --num-prompts 64

    offline     the engine in this process, no HTTP: what `bench serve` measures
    minivllm    `python -m minivllm serve`, started here
    watched     the same, with its page open: what the pictures cost
    vllm        `vllm serve`, from the environment that `make bench-vllm` builds
    NAME=URL    any server with OpenAI's API that runs already

Backends take turns at each rate, and each point is measured `--repeats` times. What the server costs is read
off beside `offline`: at the infinite rate in tokens/s, at a low one in TTFT::

    client    POST at the arrival time ---> chunk  chunk  chunk ... usage, [DONE]
    TTFT      from the arrival to the first chunk with a token, the connection included

While a server works, `/health` is asked twice per second. Its answer needs nothing of the engine: it takes as
long as the server's event loop does other things, or has no core.

Client and server share the engine's cores, and what the client costs looks as if the server cost it. So it
reads lines from a socket: with httpx the client took 0.65 s of processor time for 4,259 tokens, half as much
again as the server's event loop.

With `--client vllm` the requests are sent, and timed, by vLLM's load generator (`load_generator.py`).

Measures, tables and figure are those of `serve.py`. vLLM V1: `vllm/benchmarks/serve.py` with
`lib/endpoint_request_func.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from minivllm.bench import load_generator, options, servers
from minivllm.bench import serve as in_process
from minivllm.bench.backends import OURS, make_baseline
from minivllm.bench.report import Result, Spread, finish, new_result, ratio_text
from minivllm.bench.serve import FIRST_TOKENS, SPEEDS, Served
from minivllm.bench.workloads import BenchRequest, with_arrivals
from minivllm.weights.loader import resolve_model

OFFLINE, WATCHED, VLLM = "offline", "watched", "vllm"
PROBE_SECONDS = 0.5
Run = Callable[[list[BenchRequest]], tuple[list[Served], float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `bench serve`, with servers in place of policies."""
    options.add_workload_arguments(parser)
    options.add_engine_arguments(parser)
    options.add_output_arguments(parser, plot=True)
    add = parser.add_argument
    add("--backend", nargs="+", default=[OFFLINE, OURS], metavar="NAME",
        help="offline, minivllm, watched, vllm, or NAME=URL of a server that runs")  # fmt: skip
    add(
        "--request-rate",
        nargs="+",
        type=float,
        default=[1.0, math.inf],
        help="requests per second; inf: all at once",
    )
    add("--burstiness", type=float, default=1.0, help="1: Poisson; below: bunched; above: regular")
    add("--client", choices=("minivllm", VLLM), default="minivllm", help="who sends the requests")
    add("--vllm-env", type=Path, default=Path(".venv-vllm"), help="environment of vLLM")
    add("--num-reserved-cores", type=int, default=0, help="passed on to our server")
    options.add_counts(parser, repeats=(3, "times that each point is measured"))


def run(args: argparse.Namespace) -> int:
    """Start what is to be measured, take turns, report; -> 0."""
    requests = options.requests_from(args)
    workload = options.describe_workload(args, requests)
    result = new_result("http", client=args.client, model=args.model, workload=workload,
                        goodput_limits_ms={}, points=[])  # fmt: skip
    with ExitStack() as stack:
        backends = {name: make_backend(name, args, stack) for name in dict.fromkeys(args.backend)}
        names = {(text.partition("=")[0]): each for text, each in backends.items()}
        for each in names.values():
            each(requests[:2])  # to warm up
        for rate in args.request_rate:
            rounds: dict[str, list[Result]] = {name: [] for name in names}
            for number in range(args.repeats):
                arriving = with_arrivals(requests, rate, args.burstiness, args.seed + number)
                for name, each in names.items():
                    rounds[name].append(in_process.summarize(*each(arriving), {}))
            for name, points in rounds.items():
                point = {"backend": name, "request_rate": rate if math.isfinite(rate) else None,
                         **in_process.median_round(points),
                         SPEEDS: [point["output_tokens_per_second"] for point in points],
                         FIRST_TOKENS: [point["ttft"]["median"] for point in points]}  # fmt: skip
                result["points"].append(point)
                print(f"\n{name}\n{in_process.vllm_table(point)}")
    print()
    return finish(args, result, print_report, in_process.plot)


def make_backend(text: str, args: argparse.Namespace, stack: ExitStack) -> Run:
    """A function that runs requests; what it needs lives as long as `stack`. ValueError: no such backend."""
    name, _, url = text.partition("=")
    if url:
        return client_of(args, url.rstrip("/"), None)
    port = servers.free_port()
    if name == OFFLINE:
        return partial(
            in_process.serve, make_baseline(OURS, args.model, options.engine_options(args)).llm.llm_engine
        )
    if name in (OURS, WATCHED):
        more = ["--num-reserved-cores", str(args.num_reserved_cores)]
        command, variables = servers.minivllm_command(args, port, more), None
    elif name == VLLM:
        command, variables = servers.vllm_command(args, port, args.vllm_env)
    else:
        raise ValueError(f"--backend takes offline, minivllm, watched, vllm or NAME=URL, got {text!r}.")
    server = stack.enter_context(servers.running(name, command, port, variables))
    return client_of(args, server.url, servers.NAME, watch=name == WATCHED)


def client_of(args: argparse.Namespace, url: str, model: str | None, watch: bool = False) -> Run:
    """The client that was asked for. ValueError: vLLM's is no open page, and needs the model's name."""
    if args.client != VLLM:
        return partial(send_all, url, model, watch=watch)
    if watch or model is None:
        raise ValueError("--client vllm goes with the backends offline, minivllm and vllm.")
    return partial(load_generator.send_all, url, model, resolve_model(args.model), args.vllm_env)


def send_all(
    url: str, model: str | None, requests: list[BenchRequest], watch: bool = False
) -> tuple[list[Served], float]:
    """Send the requests as they arrive; -> when each got its tokens, and the seconds in all.

    Args:
        watch: have the page's pictures sent meanwhile, and throw them away.
    """

    async def main() -> tuple[list[Served], float]:
        async with httpx.AsyncClient(timeout=3600) as client:
            answered: list[float] = []
            beside = [asyncio.create_task(probe(client, url, answered))]
            beside += [asyncio.create_task(look(client, url))] if watch else []
            start = time.perf_counter()
            served = await asyncio.gather(*(send(url, model, start, each) for each in requests))
            seconds = time.perf_counter() - start
            for task in beside:
                task.cancel()
            median, p99 = np.percentile(answered or [0.0], (50, 99))
            print(f"/health answered in {1e3 * median:.1f} ms (median), {1e3 * p99:.1f} ms (99%)")
            return list(served), seconds

    return asyncio.run(main())


async def probe(client: httpx.AsyncClient, url: str, answered: list[float]) -> None:
    """Ask for /health until cancelled, and note how long each answer took."""
    while True:
        start = time.perf_counter()
        await client.get(f"{url}/health")
        answered.append(time.perf_counter() - start)
        await asyncio.sleep(PROBE_SECONDS)


async def look(client: httpx.AsyncClient, url: str) -> None:
    """Be an open page until cancelled."""
    async with client.stream("GET", f"{url}/page/events") as answer:
        async for _ in answer.aiter_bytes():
            pass


async def send(url: str, model: str | None, start: float, request: BenchRequest) -> Served:
    """One request, at its time. RuntimeError: another number of tokens came than was asked for."""
    body: dict[str, Any] = {
        "prompt": list(request.prompt_token_ids), "max_tokens": request.output_len, "temperature": 0,
        "ignore_eos": True, "stream": True,
        # A chunk may hold several tokens; how many there are so far is in its usage.
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    if model is not None:
        body["model"] = model
    await asyncio.sleep(start + request.arrival_time - time.perf_counter())
    times: list[float] = []
    async for line in post(f"{url}/v1/completions", json.dumps(body).encode()):
        now = time.perf_counter() - start
        if line.startswith(b"data: {"):
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise RuntimeError(f"{url} answered: {line[:300]!r}")
            times += [now] * (chunk["usage"]["completion_tokens"] - len(times))
    if len(times) != request.output_len:
        raise RuntimeError(f"{url} made {len(times)} tokens, asked for were {request.output_len}.")
    return Served(request.arrival_time, len(request.prompt_token_ids), tuple(times))


async def post(url: str, body: bytes) -> AsyncIterator[bytes]:
    """The lines of an answer, one by one as they come. RuntimeError: its status is not 200.

    Between them may stand the sizes of HTTP's chunks, each in a line of its own.
    """
    parts = urlsplit(url)
    is_secret = parts.scheme == "https"
    port = parts.port or (443 if is_secret else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=is_secret or None)
    try:
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status = await reader.readline()
        if status.split()[1:2] != [b"200"]:
            raise RuntimeError(f"{url} answered {status!r}: {(await reader.read())[-300:]!r}")
        async for line in reader:
            yield line
    finally:
        writer.close()


def print_report(result: Result) -> None:
    """The table of `bench serve`, and what the server costs beside the bare engine.

    That is a ratio of tokens/s where all requests are there at once, and where they arrive, which decides the
    tokens/s, how much later a first token comes.
    """
    in_process.print_report(result)
    points = {(point["backend"], point["request_rate"]): point for point in result["points"]}
    for (name, rate), point in points.items():
        bare = points.get((OFFLINE, rate))
        if bare is None or name == OFFLINE:
            continue
        if rate is None:
            speeds = (Spread(tuple(each[SPEEDS])) for each in (point, bare))
            print(f"All at once: {ratio_text(*speeds, name, OFFLINE, result['provenance'])}.")
        else:
            pairs = zip(point[FIRST_TOKENS], bare[FIRST_TOKENS], strict=True)
            later = Spread(tuple(1e3 * (a - b) for a, b in pairs))
            print(f"At {rate:g} requests/s a first token of {name} comes {later:+.1f} ms later.")

"""Soak: clients that behave badly, for as long as one likes, against a server whose pool is too small.

    $ python -m minivllm bench soak --minutes 20

A server is started with few blocks, so that it preempts all the time, and `--clients` clients do at random::

    whole     a completion; its text must be the offline engine's       slow      reads a chunk now and then
    stream    the same in chunks                                        leave     goes away in the middle
    cancel    gives up waiting for a whole answer                       garbage   bodies that are none
    upload    half a body, then nothing                                 crowd     more than the queue holds

What must hold is checked all the time, and at the end: no answer of 500, no request without an end, every
finished text right, no block held when all have gone, and memory that does not grow (its slope is printed).

vLLM V1 has no counterpart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from minivllm import LLM, SamplingParams
from minivllm.bench import options, servers
from minivllm.bench.report import Result, describe, finish, new_result
from minivllm.bench.servers import Server

HUNG_SECONDS = 300.0  # an answer that takes longer will never come
WORDS = [
    "the",
    "block",
    "table",
    "maps",
    "every",
    "logical",
    "position",
    "of",
    "a",
    "request",
    "to",
    "a",
    "physical",
    "slot",
    "in",
    "memory",
]


@dataclass
class Soak:
    """One run: what is asked for, what came of it."""

    server: Server
    expected: dict[str, str]  # body of a request as JSON -> text of the offline engine
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, bytes

    def check(self, is_right: bool, what: str) -> None:
        """Note a failure unless `is_right`."""
        if not is_right:
            self.failures.append(what)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, how many, against which model."""
    options.add_engine_arguments(parser)
    options.add_output_arguments(parser)
    options.add_seed(parser)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long")
    options.add_counts(parser, clients=(16, "clients at once"), prompts=(24, "different requests"))
    # Texts are compared with those of an engine without company. Among thousands of draws some lie on the
    # border of two tokens, where the rounding of another batch would decide: no bit may depend on the batch.
    parser.set_defaults(
        num_blocks=40, max_num_seqs=8, max_model_len=320, enable_prefix_caching=True, batch_invariant=True
    )


def run(args: argparse.Namespace) -> int:
    """Soak, report; -> 0, or 1 if anything was wrong."""
    rng = random.Random(args.seed)
    expected = offline_texts(args, [make_body(rng) for _ in range(args.prompts)])
    port = servers.free_port()
    more = ["--max-queued-requests", "32"]
    with servers.running("minivllm", servers.minivllm_command(args, port, more), port) as server:
        soak = Soak(server, expected)
        asyncio.run(clients(soak, args))
        metrics = wait_until_idle(soak)
    grown = slope(soak.memory)
    result = new_result(
        "soak", model=args.model, minutes=args.minutes, done=dict(soak.done), failures=soak.failures,
        preemptions=metrics["vllm:num_preemptions_total"], memory_mib=[b / 2**20 for _, b in soak.memory],
        memory_slope_kib_per_minute=grown,
    )  # fmt: skip
    finish(args, result, print_report)
    return 1 if soak.failures else 0


def make_body(rng: random.Random) -> dict[str, Any]:
    """A request: greedy or seeded, one or several completions, with or without a stop string."""
    body: dict[str, Any] = {
        "prompt": " ".join(rng.choices(WORDS, k=rng.randint(1, 12))), "max_tokens": rng.randint(1, 120),
        "temperature": 0, "ignore_eos": rng.random() < 0.8,
    }  # fmt: skip
    if rng.random() < 0.5:
        body |= {"temperature": 1.0, "seed": rng.randrange(1000), "n": rng.choice([1, 1, 2, 3])}
    if rng.random() < 0.3:
        body["stop"] = rng.choice(["e", "th", "\n"])
    return body


def offline_texts(args: argparse.Namespace, bodies: list[dict[str, Any]]) -> dict[str, str]:
    """The text of each request, its completions joined, one request at a time in an engine of our own."""
    llm = LLM(args.model, **options.engine_options(args) | {"skip_tokenizer_init": False, "num_blocks": 512})
    texts = {}
    for body in bodies:
        params = SamplingParams(**{name: value for name, value in body.items() if name != "prompt"})
        (output,) = llm.generate([body["prompt"]], params, use_tqdm=False)
        texts[json.dumps(body)] = "|".join(each.text for each in output.outputs)
    return texts


async def clients(soak: Soak, args: argparse.Namespace) -> None:
    """All clients, until the time is over and the last has its answer."""
    end = time.monotonic() + 60 * args.minutes
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
    async with httpx.AsyncClient(base_url=soak.server.url, timeout=HUNG_SECONDS, limits=limits) as http:

        async def client(number: int) -> None:
            rng = random.Random(f"{args.seed}/{number}")
            while time.monotonic() < end:
                kind = rng.choices(list(KINDS), weights=[weight for _, weight in KINDS.values()])[0]
                try:
                    await asyncio.wait_for(KINDS[kind][0](soak, http, rng), HUNG_SECONDS)
                except TimeoutError:
                    soak.check(False, f"{kind}: no end after {HUNG_SECONDS} s")
                except httpx.HTTPError as error:
                    soak.check(False, f"{kind}: {error!r}")
                soak.done[kind] += 1

        async def watch() -> None:
            while True:
                soak.memory.append((time.monotonic(), soak.server.resident_bytes()))
                await asyncio.sleep(max(1.0, 60 * args.minutes / 200))

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*map(client, range(args.clients)))
        watcher.cancel()


def wait_until_idle(soak: Soak) -> dict[str, float]:
    """The server's metrics when all clients have gone; what is still held then is lost."""
    end = time.monotonic() + 60
    while True:
        metrics = soak.server.metrics()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        left = {name: metrics[name] for name in names if metrics[name]}
        if not left or time.monotonic() > end:
            break
        time.sleep(0.2)
    soak.check(not left, f"left behind: {left}")
    soak.check(metrics["vllm:num_preemptions_total"] > 0, "the pool was never starved: fewer --num-blocks")
    return metrics


# -- what clients do --------------------------------------------------------------------------------


def pick(soak: Soak, rng: random.Random) -> tuple[dict[str, Any], str]:
    """One of the requests, and its text."""
    text = rng.choice(list(soak.expected))
    return json.loads(text), soak.expected[text]


async def whole(soak: Soak, http: httpx.AsyncClient, rng: random.Random) -> None:
    """A completion in one body."""
    body, expected = pick(soak, rng)
    answer = await http.post("/v1/completions", json=body)
    if answer.status_code != 503:
        soak.check(answer.status_code == 200, f"whole: {answer.status_code} {answer.text[:200]}")
        got = "|".join(choice["text"] for choice in answer.json().get("choices", []))
        soak.check(got == expected, f"whole: {got!r}, expected {expected!r}")


async def stream(soak: Soak, http: httpx.AsyncClient, rng: random.Random, pause: float = 0.0) -> None:
    """A completion in chunks, read with a pause after each."""
    body, expected = pick(soak, rng)
    texts = [""] * body.get("n", 1)
    async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        if answer.status_code == 503:
            return
        lines = [line async for line in _lines(answer, pause)]
    soak.check(bool(lines) and lines[-1] == "data: [DONE]", f"stream: ends with {lines[-1:]}")
    for line in lines[:-1]:
        for choice in json.loads(line.removeprefix("data: ")).get("choices", []):
            texts[choice["index"]] += choice["text"]
    soak.check("|".join(texts) == expected, f"stream: {texts!r}, expected {expected!r}")


async def _lines(answer: httpx.Response, pause: float) -> Any:
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield line
            await asyncio.sleep(pause)


async def slow(soak: Soak, http: httpx.AsyncClient, rng: random.Random) -> None:
    """A reader that is slower than the engine."""
    await stream(soak, http, rng, pause=rng.random() * 0.1)


async def leave(soak: Soak, http: httpx.AsyncClient, rng: random.Random) -> None:
    """A stream that is left after a few chunks."""
    body, _ = pick(soak, rng)
    async with http.stream(
        "POST", "/v1/completions", json=body | {"stream": True, "max_tokens": 150}
    ) as answer:
        left = rng.randrange(20)
        async for _ in answer.aiter_lines():
            left -= 1
            if left < 0:
                return


async def cancel(soak: Soak, http: httpx.AsyncClient, rng: random.Random) -> None:
    """A client that does not wait for its whole answer."""
    body, _ = pick(soak, rng)
    try:
        async with asyncio.timeout(rng.random()):
            await http.post("/v1/completions", json=body | {"max_tokens": 150})
    except TimeoutError:
        pass


async def garbage(soak: Soak, http: httpx.AsyncClient, rng: random.Random) -> None:
    """Bodies that are none, and values that no field takes: 4xx, whatever they are."""
    values = [None, -1, 10**30, 1e308, True, "x", [], {}, [[]], "\ud800", {"a": [1]}]
    names = [
        "prompt",
        "n",
        "stop",
        "seed",
        "logprobs",
        "logit_bias",
        "stream",
        "messages",
        "top_k",
        "max_tokens",
    ]
    body = {name: rng.choice(values) for name in rng.sample(names, 4)} | {"temperature": 7e7}
    content = rng.choice([json.dumps(body).encode(), rng.randbytes(40), b"{" * 2000, b""])
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
    answer = await http.post(path, content=content, headers={"Content-Type": "application/json"})
    soak.check(answer.status_code < 500, f"garbage: {answer.status_code} for {path} {content[:200]!r}")


async def upload(soak: Soak, http: httpx.AsyncClient, rng: random.Random) -> None:
    """Half a body, and gone."""

    def send() -> None:
        host, _, port = soak.server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                           b"Content-Type: application/json\r\n"
                           b"Content-Length: 100\r\n\r\n" + b"{" * rng.randrange(99))  # fmt: skip

    await asyncio.to_thread(send)


async def crowd(soak: Soak, http: httpx.AsyncClient, rng: random.Random) -> None:
    """More requests than the queue holds, in one call: 503, and none of them runs."""
    body, _ = pick(soak, rng)
    answer = await http.post("/v1/completions", json=body | {"prompt": ["x"] * 64})
    soak.check(answer.status_code == 503, f"crowd: {answer.status_code} {answer.text[:200]}")


Kind = Callable[[Soak, httpx.AsyncClient, random.Random], Coroutine[Any, Any, None]]
KINDS: dict[str, tuple[Kind, int]] = {
    "whole": (whole, 3), "stream": (stream, 4), "slow": (slow, 1), "leave": (leave, 3),
    "cancel": (cancel, 2), "garbage": (garbage, 3), "upload": (upload, 1), "crowd": (crowd, 1),
}  # fmt: skip
"""What a client may do, and how often."""


def slope(memory: list[tuple[float, int]]) -> float:
    """KiB a minute, fitted to the last two thirds: at first caches fill, which is no leak."""
    points = memory[len(memory) // 3 :]
    if len(points) < 2:
        return 0.0
    seconds, sizes = np.array(points, dtype=float).T
    return float(np.polyfit(seconds - seconds[0], sizes, 1)[0]) * 60 / 1024


def print_report(result: Result) -> None:
    """What was done, what went wrong, and whether memory grew."""
    print(describe(result["provenance"]))
    print(f"{result['model']}, {result['minutes']:g} minutes, {result['preemptions']:.0f} preemptions")
    print(", ".join(f"{name} {count}" for name, count in sorted(result["done"].items())))
    memory = result["memory_mib"]
    print(f"memory {memory[0]:.0f} MiB at first, {memory[-1]:.0f} at the end; "
          f"{result['memory_slope_kib_per_minute']:+.0f} KiB a minute")  # fmt: skip
    for text in result["failures"][:20]:
        print(f"FAILED {text}")
    print("nothing failed" if not result["failures"] else f"{len(result['failures'])} failures")

"""`python -m minivllm serve [MODEL]`: options, the engine, uvicorn, signals::

    $ python -m minivllm serve --num-blocks 24        a pool so small that the second request is preempted
    $ curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
           -d '{"prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}'

    SIGTERM, or Ctrl-C once    no new connections; what runs is finished, for --shutdown-timeout seconds;
                               then the rest get 503, or an error as the last event of their stream
    Ctrl-C twice               stops at once, and connections are cut

Option names are vLLM's where it has them (`vllm serve --help`).

vLLM V1: `vllm/entrypoints/cli/serve.py`, `vllm/entrypoints/launcher.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import torch
import uvicorn
from fastapi import FastAPI

from minivllm.cli.options import engine_options
from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.server.api import make_app
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.events import Observers, StepLog
from minivllm.server.limits import Limits, PatientProtocol, is_loopback
from minivllm.server.page import Feed, page_routes
from minivllm.server.prometheus import StepMetrics, metrics_routes
from minivllm.server.service import Service
from minivllm.weights.download import resolve_model
from minivllm.weights.generation_config import default_sampling_params
from minivllm.weights.loader import load_model_config

# For telling clients that the server ends. One that does not read it by then is cut off.
GOODBYE_SECONDS = 5


class Server(uvicorn.Server):
    """The server with its engine; `run()` blocks until a signal ends it.

    Args:
        args: of the command line, see `cli/serve_options.py`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if args.num_reserved_cores:
            torch.set_num_threads(max(1, torch.get_num_threads() - args.num_reserved_cores))
        names = tuple(args.served_model_name or [args.model])
        log, metrics = StepLog(), StepMetrics(names[0])
        self.engine = AsyncLLM(
            lambda: LLMEngine(engine_config(args), trace=Observers(metrics, log)), metrics.note_finished
        )
        self.service = Service(
            engine=self.engine,
            names=names,
            defaults=default_sampling_params(self.engine.engine.model_folder),
            max_unfinished=args.max_num_seqs + args.max_queued_requests,
            max_prompt_chars=self.engine.engine.max_model_len * longest_token(self.engine),
        )
        limits = Limits(
            api_keys=tuple(args.api_key or filter(None, [os.environ.get("VLLM_API_KEY")])),
            is_loopback=is_loopback(args.host),
            allowed_origins=tuple(args.allowed_origins),
            max_body_bytes=args.max_body_bytes,
        )
        routers = [metrics_routes(self.engine, metrics)]
        if args.page:
            routers.append(page_routes(Feed(self.engine, log, lambda: self.should_exit)))
        app = make_app(self.service, limits, *routers)
        app.router.lifespan_context = self._lifespan
        self.shutdown_timeout, self.has_page = args.shutdown_timeout, args.page
        super().__init__(
            uvicorn.Config(
                app,
                host=args.host,
                port=args.port,
                http=PatientProtocol,
                log_level=args.uvicorn_log_level,
                timeout_keep_alive=args.timeout_keep_alive,
                timeout_graceful_shutdown=args.shutdown_timeout + GOODBYE_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where: only now is it known which port 0 has become."""
        await super().startup(sockets)
        host, port = self.config.host, self.servers[0].sockets[0].getsockname()[1]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        page = f"The pool to look at: {url}/     " if self.has_page else ""
        print(f"{page}The API: {url}/v1", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs finish for `shutdown_timeout` seconds, and tell the rest that the server ends.

        The engine closes before uvicorn's own limit is over, because all that uvicorn can do then is to
        cancel: its clients would get a plain "Internal Server Error", or a stream which just stops.
        """
        ending = asyncio.get_running_loop().call_later(self.shutdown_timeout, self.engine.close)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """While the application lives; then the engine ends too."""
        self.loop = asyncio.get_running_loop()
        yield
        self.engine.shutdown()


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The engine's settings. A small pool shortens the longest sequence, which must fit into it alone."""
    config = EngineConfig(model=args.model, **engine_options(args))
    if config.num_blocks is None or config.max_model_len is not None:
        return config
    longest = load_model_config(resolve_model(config.model)).max_position_embeddings
    return replace(config, max_model_len=min(longest, config.num_blocks * config.block_size))


def longest_token(engine: AsyncLLM) -> int:
    """Characters of the longest token: a text of more characters than that, times the tokens, cannot fit."""
    return max(map(len, engine.engine.tokenizer.get_vocab()))


def serve(args: argparse.Namespace) -> None:
    """Run the command."""
    server = Server(args)
    engine = server.engine.engine
    print(f"{args.model}: {engine.memory().num_blocks} KV blocks of {engine.config.block_size} tokens, "
          f"sequences of up to {engine.max_model_len} tokens.")  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is over
        server.run()

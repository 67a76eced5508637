"""`serve --num-replicas N`: the server's application N times behind one address, under Ray Serve.

    client --x-session-id: 7--> proxy --hash of 7--> replica 2     the same for every request of this session
    client ------no session---> proxy -------------> any

A replica's prefix cache holds the conversations that it has answered. So requests of one conversation should
go to one replica, or each turn is computed from the start by a machine that has never seen it. The proxy does
not read bodies; what it can go by is a header which the client sends, `x-session-id`. The OpenAI client sends
it with `OpenAI(..., default_headers={"x-session-id": "7"})`.

Starting replicas, watching them, starting them again and the consistent hash are Ray Serve's.

vLLM: `vllm serve --data-parallel-size N`; Ray's own `ray.serve.llm` around vLLM.
"""

from __future__ import annotations

import argparse

from fastapi import FastAPI

from minivllm.batch.ray_replicas import start_ray
from minivllm.server.launch import Server

SESSION_HEADER = "x-session-id"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def deployment(args: argparse.Namespace):  # noqa: ANN201  a class that exists only where Ray does
    """The application, as Ray Serve starts it `args.num_replicas` times; not started yet.

    Args:
        args: of `serve`, see `cli/serve_options.py`.
    """
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    def application() -> FastAPI:
        """Called in each replica's process. uvicorn is the proxy's here: only the application is taken."""
        return Server(args).config.app

    num_gpus = args.tensor_parallel_size if ray.cluster_resources().get("GPU") else 0
    return serve.deployment(
        serve.ingress(application)(),
        name="minivllm",
        num_replicas=args.num_replicas,
        # The application itself says 503 when it has too many; this limit is only to let that many through.
        max_ongoing_requests=args.max_num_seqs + args.max_queued_requests + 1,
        ray_actor_options={"num_cpus": 1, "num_gpus": num_gpus},
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
    ).bind()


def serve(args: argparse.Namespace) -> None:
    """Run until Ctrl-C.

    Raises:
        ValueError: Ray is not installed, or there are no replicas to start.
    """
    if args.num_replicas < 1:
        raise ValueError(f"--num-replicas must be at least 1, got {args.num_replicas}.")
    start_ray(args.ray_address)
    from ray import serve as ray_serve

    ray_serve.start(http_options={"host": args.host, "port": args.port})
    print(f"{args.num_replicas} replicas of {args.model}. The API: http://{args.host}:{args.port}/v1")
    ray_serve.run(deployment(args), name="minivllm", blocking=True)

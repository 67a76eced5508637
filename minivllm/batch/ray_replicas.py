"""Replicas on Ray: one engine in each of N actors, on whatever machines the cluster has.

    run_batch.py --seat--> replica 0 (machine A)     16 seats each: an actor gets the next line when it has
                 --seat--> replica 1 (machine A)     answered one, so a fast machine gets more lines
                 --seat--> replica 2 (machine B)

What is hard about this is Ray's: where there is room for a replica, starting it again when it dies
(`max_restarts`), and calling it again with the lines it had (`max_task_retries`). Our part is to hand out
lines, no more than the engines can work on.

`pip install minivllm[ray]`. vLLM: `ray` as executor backend, and `vllm serve --data-parallel-backend ray`.
"""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from typing import Any

from minivllm.batch.run_batch import Answer

MAX_RESTARTS = 3
"""A replica that dies more often has a lasting reason: the model does not fit, or a line kills it."""


def start_ray(address: str | None) -> None:
    """Join the cluster at `address`; None: the one that RAY_ADDRESS names, or a new one on this machine.

    Raises:
        ValueError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise ValueError("--num-replicas needs Ray: pip install 'minivllm[ray]' (about 300 MB).")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)


def replicas_on_ray(model: str, options: dict[str, Any], num_replicas: int, seats: int) -> Answer:
    """Start the replicas; the answer comes from the one that is free first.

    Args:
        model, options: of each replica's engine. num_replicas: each takes one CPU core as Ray counts, and a
        GPU for each of its workers if there are any. seats: requests under way on each.
    """
    import ray

    from minivllm.batch.replica import Replica

    num_gpus = options.get("tensor_parallel_size", 1) if ray.cluster_resources().get("GPU") else 0
    actor = ray.remote(Replica).options(
        num_cpus=1,
        num_gpus=num_gpus,
        max_concurrency=seats,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
    )
    replicas = [actor.remote(model, options) for _ in range(num_replicas)]
    free: asyncio.Queue[Any] = asyncio.Queue()
    for replica in replicas * seats:
        free.put_nowait(replica)

    async def answer(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        replica = await free.get()
        try:
            return await replica.answer.remote(url, body)
        finally:
            free.put_nowait(replica)

    return answer

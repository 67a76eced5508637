"""What ranks say to each other: sums, parts put side by side, and messages from rank 0.

Why it exists: each layer asks its `TensorParallel` to add up or to gather, and does not know how. That object
is handed down as an argument and holds all the state there is: which rank this is, of how many, and what has
been sent so far. Two ranks with one token each::

    all_reduce   rank 0 [1, 2]   rank 1 [10, 20]    ->   both [11, 22]            partial sums
    all_gather   rank 0 [1, 2]   rank 1 [10, 20]    ->   both [1, 2, 10, 20]      parts of the vocabulary
    broadcast    rank 0 b"plan"  rank 1 None        ->   both b"plan"

The work is done by torch.distributed: gloo for tensors on a CPU, NCCL for those on a GPU. A sum is made once
and then handed out, so all ranks have the same bits, whatever the order of its terms; that is why all of them
sample the same token.

vLLM V1: `vllm/distributed/parallel_state.py` (`GroupCoordinator`), `communication_op.py`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minivllm.distributed.sharding import WHOLE, Shard

# An idle engine leaves its workers waiting in a broadcast. A worker that is gone is noticed by its closed
# connection, so this limit need not notice anything.
FOREVER = timedelta(days=365)
START_LIMIT = timedelta(minutes=5)
"""How long ranks of several machines wait for each other at the start."""


@dataclass(frozen=True)
class TensorParallel:
    """One rank among `shard.size`, and its connections to the others.

    `calls` and `nbytes` count by operation; of a message or tensor that is what one rank puts in, whatever
    the library makes of it on the wire.
    """

    shard: Shard = WHOLE
    calls: Counter[str] = field(default_factory=Counter)
    nbytes: Counter[str] = field(default_factory=Counter)

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in place of `x`, any shape."""
        self._count("all_reduce", x.nbytes)
        dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """(N, V / size) of each rank -> (N, V): side by side, in the order of the ranks."""
        self._count("all_gather", x.nbytes)
        parts = [torch.empty_like(x) for _ in range(self.shard.size)]
        dist.all_gather(parts, x)
        # Along the last dimension. Gathered into one tensor and reshaped instead, all parts of row 0 would
        # come out as rows of their own: right for a single row, wrong for two.
        return torch.cat(parts, dim=-1)

    def smallest(self, number: int) -> int:
        """The least of all ranks' numbers."""
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return int(value)

    def broadcast(self, message: bytes | None) -> bytes:
        """Rank 0's message, on every rank. First its length, so that the others can make room."""
        length = torch.tensor(0 if message is None else len(message))
        dist.broadcast(length, src=0)
        content = torch.empty(int(length), dtype=torch.uint8)
        if message is not None:
            content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        dist.broadcast(content, src=0)
        self._count("broadcast", content.nbytes)
        return content.numpy().tobytes()

    def gather(self, value: Any) -> list[Any] | None:
        """One object of each rank, as a list at rank 0; None elsewhere."""
        values = [None] * self.shard.size if self.shard.rank == 0 else None
        dist.gather_object(value, values, dst=0)
        return values

    def _count(self, operation: str, nbytes: int) -> None:
        self.calls[operation] += 1
        self.nbytes[operation] += nbytes


def join(shard: Shard, address: str, port: int) -> TensorParallel:
    """Meet the other ranks at `address`:`port`, where the first machine's engine keeps the list of them.

    Raises:
        RuntimeError: the others did not come within `START_LIMIT`; the text says which.
    """
    store = dist.TCPStore(address, port, is_master=False, timeout=START_LIMIT)
    names = [f"rank {rank}" for rank in range(shard.size)]
    store.set(names[shard.rank], "is here")
    try:
        store.wait(names, START_LIMIT)
    except dist.DistError as error:
        missing = ", ".join(name for name in names if not store.check([name]))
        raise RuntimeError(
            f"{missing} of {shard.size} did not come to {address}:{port} within {START_LIMIT}. With several "
            f"machines, run `python -m minivllm worker` on each of the others."
        ) from error
    # Each tensor goes by the library of its device: one group serves plans on the CPU and sums on a GPU.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=shard.rank, world_size=shard.size, timeout=FOREVER)
    return TensorParallel(shard)


def leave() -> None:
    """End the connections to the other ranks, and the library's threads with them, before the program ends.

    Threads which are still there when Python takes itself apart can end a worker, whose work is done, with
    SIGABRT ("terminate called without an active exception").
    """
    dist.destroy_process_group()

"""What runs in a worker's process: meet the other ranks, then do what is called for, until told to stop.

A call is a method's name and arguments. Rank 0 gets it from the engine's process through a pipe and
broadcasts it; every rank carries it out; rank 0 sends back what came of it::

    engine              rank 0                          rank 1
      | -- pipe: bytes --> | -- broadcast: bytes -------> |
      |                    | worker.execute_model(plan)   | worker.execute_model(plan)
      | <-- pipe: outputs- |                              |

The names it understands are those of `Worker`, and two more: `start` makes the worker from a config, `stop`
ends the process. An exception ends it as well: after one, the ranks may be at different places in the model.
A rank reports what happened through a pipe of its own, with the traceback, because the others then only find
a connection closed.

vLLM V1: `WorkerProc` in `vllm/v1/executor/multiproc_executor.py`.
"""

from __future__ import annotations

import pickle
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from minivllm.distributed.communication import TensorParallel, join, leave
from minivllm.distributed.sharding import Shard
from minivllm.distributed.worker import Worker


@dataclass(frozen=True)
class Call:
    """What every rank is to do. By `number` a reply which an interrupt left unread is told from the next."""

    number: int
    method: str
    args: tuple[Any, ...] = ()
    from_all: bool = False  # reply with a list, one result per rank; otherwise with rank 0's


@dataclass(frozen=True)
class Failure:
    """Why a rank has ended. `when`: seconds of the machine's clock, to find the first of several."""

    when: float
    text: str


@dataclass(frozen=True)
class Place:
    """Where a process belongs, and where it meets the others."""

    shard: Shard
    address: str
    port: int
    num_threads: int


def run_worker(place: Place, connection: Connection) -> None:
    """The process of one rank; `connection` is its pipe to the process which has started it."""
    # Ctrl-C goes to all processes of a terminal. The engine's process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(place.num_threads)
    try:
        serve(join(place.shard, place.address, place.port), connection)
        leave()
    except EOFError:  # the engine's process is gone without a word
        sys.exit(0)
    except Exception:
        with suppress(OSError):  # gone as well
            connection.send(Failure(time.monotonic(), traceback.format_exc()))
        sys.exit(1)


def serve(tp: TensorParallel, connection: Connection) -> None:
    """Carry out calls until one says stop.

    Raises:
        EOFError: at rank 0, when the engine's process is gone.
        Exception: whatever a call raises.
    """
    worker: Worker | None = None
    while True:
        message = connection.recv_bytes() if tp.shard.rank == 0 else None
        call: Call = pickle.loads(tp.broadcast(message))
        if call.method == "stop":
            return
        if call.method == "start":
            worker = None  # the one before gives its memory back first
            config, sampler = call.args
            worker = Worker(config, tp, sampler)
            result = worker.num_blocks()
        else:
            result = getattr(worker, call.method)(*call.args)
        if call.from_all:
            result = tp.gather(result)
        if tp.shard.rank == 0:
            connection.send((call.number, result))

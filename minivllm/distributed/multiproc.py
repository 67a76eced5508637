"""One process per rank: start them, call them, notice at once if one is gone, and leave none behind::

    engine's process                              children, spawned
    MultiprocExecutor --- WorkerGroup ==pipe====> rank 0 <--broadcast, sums--> rank 1 <--> rank 2
                               |                    |                            |          |
                               +--- waits for: a reply, or the end of any of these processes ---+

The engine's process takes no part in the sums. So nothing that happens to a rank can block it: it waits for
the reply of rank 0 and for the end of every process at the same time. A rank that is killed closes its
connections; the others, in the middle of a sum with it, get an error and end too. Then the first that ended
is named::

    WorkerError: minivllm rank 1 (process 4711) was killed by SIGKILL. (called: execute_model) ...

Processes are spawned, never forked: a copy of a process with threads (torch has some) may wait for ever for a
lock which one of them held. The port where they meet is chosen by the operating system, so two engines do not
collide.

vLLM V1: `vllm/v1/executor/multiproc_executor.py`.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
import torch.distributed as dist

from minivllm.config import EngineConfig
from minivllm.distributed.sharding import Shard
from minivllm.distributed.worker_process import Call, Failure, Place, run_worker
from minivllm.metrics.memory import MemoryReport
from minivllm.model_runner import SamplerFunction
from minivllm.outputs import SequenceOutput
from minivllm.scheduler_output import SchedulerOutput
from minivllm.weights.loader import load_model_config, resolve_model

PATIENCE_SECONDS = 1.0
"""How long the others may take to report and end, after the first rank has failed."""
STOP_SECONDS = 5.0
"""How long processes may take to end when they are told to."""


class WorkerError(RuntimeError):
    """A worker is gone, and with it the engine: the text names rank and cause. Make a new `LLM`."""


class WorkerGroup:
    """The processes of all ranks on this machine, and calls to all ranks.

    `plan_nbytes` is the size of the last call, as it was broadcast.
    """

    def __init__(
        self, size: int, nnodes: int = 1, address: str = "127.0.0.1", port: int | None = None
    ) -> None:
        """Start ranks 0 .. size / nnodes - 1 here; those of other machines come to `address`:`port`."""
        self.plan_nbytes, self._number = 0, 0
        self._error: WorkerError | None = None
        # Port 0: any free one. Chosen and taken in one step, so no other program can get in between. The
        # socket is ours, because the store's own would listen on all addresses of this machine.
        listener = socket.create_server((address, port or 0))
        port = listener.getsockname()[1]
        options = {"is_master": True, "wait_for_workers": False, "master_listen_fd": listener.detach()}
        self._store = dist.TCPStore(address, port, **options)
        places = places_of(size, nnodes, 0, address, port)
        self._processes, self._connections = start_processes(places)
        # Also called when the group is dropped or the program ends, so no process stays behind.
        self.stop = weakref.finalize(self, _stop, self._processes, self._connections)

    def call(self, method: str, *args: Any, from_all: bool = False) -> Any:
        """Call a method of every rank's `Worker`, and wait.

        Returns:
            Rank 0's result; `from_all`: a list of all ranks' results.

        Raises:
            WorkerError: a rank is gone or has raised an exception; then no rank is left.
        """
        self.check_health()
        self._number += 1
        message = pickle.dumps(Call(self._number, method, args, from_all))
        self.plan_nbytes = len(message)
        with self._whole_message(method):
            self._connections[0].send_bytes(message)
        while True:
            ready = wait([*self._connections, *(process.sentinel for process in self._processes)])
            if self._connections[0] not in ready:
                self._fail(method)
            with self._whole_message(method):
                reply = self._connections[0].recv()
            if isinstance(reply, Failure):
                self._fail(method, {0: reply})
            number, result = reply
            if number == self._number:  # otherwise the caller was interrupted before it had read this one
                return result

    def check_health(self) -> None:
        """Raise WorkerError if a process is gone."""
        if self._error is not None:
            raise WorkerError(str(self._error))
        if not self.stop.alive:
            raise WorkerError("the workers were shut down. Make a new LLM.")
        if any(process.exitcode is not None for process in self._processes):
            self._fail("no call")

    @contextmanager
    def _whole_message(self, method: str) -> Iterator[None]:
        """A message that is cut off in the middle cannot be continued: whatever cuts it ends the workers."""
        try:
            yield
        except (OSError, EOFError):
            self._fail(method)
        except BaseException:
            self._error = WorkerError(f"{method} was interrupted in the middle of a message. Make a new LLM.")
            self.stop()
            raise

    def _fail(self, method: str, failures: dict[int, Failure] | None = None) -> None:
        """A rank is in trouble: give the others time to notice, find which was the first, end all."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        cause = cause_of_end(self._processes, reports(self._connections) | (failures or {}))
        for process in self._processes:  # only now: after it, all of them look killed
            process.kill()
        self._error = WorkerError(f"{cause} (called: {method}) All workers were ended: make a new LLM.")
        self.stop()
        raise self._error


class MultiprocExecutor:
    """An `Executor` whose workers are the processes of a `WorkerGroup`.

    Raises:
        ValueError: the model cannot be divided so; said before any process is started.
        WorkerError: a worker could not start; the text says which and why.
    """

    def __init__(
        self, config: EngineConfig, sampler: SamplerFunction | None = None, group: WorkerGroup | None = None
    ) -> None:
        """`group`: processes that are there already; what they held before is dropped."""
        size = config.tensor_parallel_size
        if config.node_rank > 0:
            raise ValueError(
                "node_rank > 0: run `python -m minivllm worker` there; the engine is on machine 0."
            )
        Shard(0, size).config(load_model_config(resolve_model(config.model)))
        self.group = group or WorkerGroup(size, config.nnodes, config.master_addr, config.master_port)
        self.num_blocks, self.num_cpu_blocks = self.group.call("start", config, sampler)

    def execute_model(self, plan: SchedulerOutput) -> list[SequenceOutput]:
        """See `Executor.execute_model`."""
        return self.group.call("execute_model", plan)

    def memory(self) -> list[MemoryReport]:
        """See `Executor.memory`."""
        return self.group.call("memory", from_all=True)

    def check_health(self) -> None:
        """See `Executor.check_health`; raises WorkerError."""
        self.group.check_health()

    def shutdown(self) -> None:
        """See `Executor.shutdown`."""
        self.group.stop()


def places_of(size: int, nnodes: int, node_rank: int, address: str, port: int) -> list[Place]:
    """The ranks of one machine. Its cores are shared out among them.

    Example: size 4, nnodes 2, node_rank 1 -> ranks 2 and 3.
    """
    here = size // nnodes
    num_threads = max(1, torch.get_num_threads() // here)
    ranks = range(node_rank * here, (node_rank + 1) * here)
    return [Place(Shard(rank, size), address, port, num_threads) for rank in ranks]


def start_processes(places: list[Place]) -> tuple[list[SpawnProcess], list[Connection]]:
    """One process for each place, and our ends of the pipes to them."""
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    for place in places:
        ours, theirs = context.Pipe()
        name = f"minivllm rank {place.shard.rank}"
        process = context.Process(target=run_worker, args=(place, theirs), name=name, daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends when the process does
        processes.append(process)
        connections.append(ours)
    return processes, connections


def run_node(places: list[Place]) -> str | None:
    """The ranks of a machine which is not the engine's: start them, wait until they have ended.

    Returns:
        What went wrong; None if the engine told them to stop.
    """
    processes, connections = start_processes(places)
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    return cause_of_end(processes, reports(connections)) if any(p.exitcode for p in processes) else None


def reports(connections: list[Connection]) -> dict[int, Failure]:
    """What processes have said about their end, by number. A reply that nothing waits for is dropped."""
    found: dict[int, Failure] = {}
    for number, connection in enumerate(connections):
        with suppress(OSError, EOFError):
            while number not in found and connection.poll():
                message = connection.recv()
                if isinstance(message, Failure):
                    found[number] = message
    return found


def cause_of_end(processes: list[SpawnProcess], failures: dict[int, Failure]) -> str:
    """A process which ended without a word is the cause; otherwise the one with the earliest report is."""
    for number, process in enumerate(processes):
        if process.exitcode and number not in failures:
            return f"{process.name} (process {process.pid}) {_how(process.exitcode)}."
    if not failures:
        return "A worker ended without being told to."
    first = min(failures, key=lambda number: failures[number].when)
    return f"{processes[first].name} failed:\n{failures[first].text}"


def _stop(processes: list[SpawnProcess], connections: list[Connection]) -> None:
    """End all processes: by asking, and those that do not listen by force."""
    with suppress(OSError):
        connections[0].send_bytes(pickle.dumps(Call(0, "stop")))
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process, connection in zip(processes, connections, strict=True):
        process.kill()
        process.join()
        connection.close()


def _how(exitcode: int) -> str:
    """In words: -9 -> "was killed by SIGKILL"."""
    if exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode} and no report (a script that makes an LLM needs " \
        'if __name__ == "__main__":)'  # fmt: skip

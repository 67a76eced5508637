"""The executor: where plans are carried out, seen from the engine.

The engine does not know how many workers there are. It asks how many blocks they all have, has plans carried
out, and asks whether the workers are alive and what memory they hold; in the end it shuts them down::

    LLMEngine ---- executor.execute_model(plan) ----> [SequenceOutput, ...]
                     |
                     +-- UniprocExecutor       one worker in this process: a method call
                     +-- MultiprocExecutor     one process per rank: the plan goes out by value

Paper: section 4.6 (the scheduler is centralized, the workers are not). vLLM V1:
`vllm/v1/executor/abstract.py`, `uniproc_executor.py`, `multiproc_executor.py`.
"""

from __future__ import annotations

from typing import Protocol

from minivllm.attention import AttentionBackend
from minivllm.config import EngineConfig
from minivllm.distributed.worker import Worker
from minivllm.metrics.memory import MemoryReport
from minivllm.model_runner import SamplerFunction
from minivllm.outputs import SequenceOutput
from minivllm.scheduler_output import SchedulerOutput


class Executor(Protocol):
    """Holds the workers, one or many."""

    num_blocks: int
    """KV blocks that every worker has."""
    num_cpu_blocks: int
    """Blocks of swap space that every worker has."""

    def execute_model(self, plan: SchedulerOutput) -> list[SequenceOutput]:
        """Carry out one step; one output for each of `plan.scheduled`, in its order."""

    def memory(self) -> list[MemoryReport]:
        """What each worker holds, by rank."""

    def check_health(self) -> None:
        """Raise if a worker is gone."""

    def shutdown(self) -> None:
        """End the workers; may be called again."""


class UniprocExecutor:
    """One worker, in this process. `runner` is looked up at each step: it may be replaced."""

    def __init__(
        self,
        config: EngineConfig,
        sampler: SamplerFunction | None = None,
        attention_backend: AttentionBackend | None = None,
    ) -> None:
        self.worker = Worker(config, None, sampler, attention_backend)
        self.num_blocks, self.num_cpu_blocks = self.worker.num_blocks()
        self.runner = self.worker.runner

    def execute_model(self, plan: SchedulerOutput) -> list[SequenceOutput]:
        """See `Executor.execute_model`."""
        return self.runner.execute_model(plan)

    def memory(self) -> list[MemoryReport]:
        """See `Executor.memory`."""
        return [self.worker.memory()]

    def check_health(self) -> None:
        """A worker in this process is as alive as the caller."""

    def shutdown(self) -> None:
        """Nothing to end: the memory goes with the object."""


def make_executor(
    config: EngineConfig,
    sampler: SamplerFunction | None = None,
    attention_backend: AttentionBackend | None = None,
) -> Executor:
    """The executor that the config asks for: "uni" for one worker, "mp" for more or if it says so.

    Raises:
        ValueError: as `Worker` and `MultiprocExecutor`.
    """
    if config.tensor_parallel_size == 1 and config.distributed_executor_backend != "mp":
        return UniprocExecutor(config, sampler, attention_backend)
    # Imported here: a single worker needs no processes.
    from minivllm.distributed.multiproc import MultiprocExecutor

    if attention_backend is not None:
        raise ValueError(
            "attention_backend must be a name when workers are processes of their own: each makes its own "
            "object, for its own heads."
        )
    return MultiprocExecutor(config, sampler)

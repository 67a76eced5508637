"""Which settings about workers go together: those of `EngineConfig`, checked before anything is started.

Each machine runs as many workers as the others. Four workers on two machines::

    --tensor-parallel-size 4 --nnodes 2 --master-addr 10.0.0.1 --master-port 4711
        --node-rank 0    10.0.0.1: scheduler, rank 0, rank 1
        --node-rank 1    the other: rank 2, rank 3          python -m minivllm worker

What depends on the model (do 4 ranks divide its heads?) is in `sharding.py`.

vLLM V1: `vllm/config/parallel.py`.
"""

from __future__ import annotations

from minivllm.config import EngineConfig


def check_workers(config: EngineConfig) -> None:
    """Raise ValueError where the settings about workers do not go together."""
    size, nnodes = config.tensor_parallel_size, config.nnodes
    if config.distributed_executor_backend == "uni" and size > 1:
        raise ValueError(
            f'distributed_executor_backend="uni" is one worker in this process, but tensor_parallel_size '
            f'is {size}: leave the backend out, or say "mp".'
        )
    if size % nnodes or config.node_rank >= nnodes:
        raise ValueError(
            f"tensor_parallel_size ({size}) must be a multiple of nnodes ({nnodes}), and node_rank "
            f"({config.node_rank}) below nnodes: each machine runs as many workers as the others."
        )
    if nnodes > 1 and config.master_port is None:
        raise ValueError("with nnodes > 1 give master_port: the other machines have to know where to go.")

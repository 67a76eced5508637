"""The worker: what one rank holds (weights, KV cache, runner), made from the config alone.

An engine with one worker has it in its own process. With several, each is a process which makes this very
object, and then does what it is told::

    worker = Worker(config, TensorParallel(Shard(rank=1, size=3)))
    worker.execute_model(plan)        the same plan on every rank, carried out on a third of the model

All ranks run the same program (SPMD). They meet in the sums of the layers, so all have to do the same in the
same order; no rank asks the scheduler anything, because all it may need is in the plan.

Paper: section 4.6. vLLM V1: `vllm/v1/worker/gpu_worker.py`, `cpu_worker.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from minivllm.attention import AttentionBackend
from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.backends.attention_torch import TorchAttention
from minivllm.backends.compiled_steps import CompiledSteps, can_compile
from minivllm.backends.cuda_graphs import DecodeGraphs, can_replay
from minivllm.backends.linears import tile_linears
from minivllm.config import EngineConfig
from minivllm.distributed.communication import TensorParallel
from minivllm.distributed.drafts import DraftsOfRankZero
from minivllm.distributed.parallel_layers import parallelize
from minivllm.kv_cache import KVCache
from minivllm.metrics.memory import MemoryReport, derive_num_blocks
from minivllm.model import Model
from minivllm.model_runner import DecodeSteps, Drafter, ModelRunner, SamplerFunction
from minivllm.outputs import SequenceOutput
from minivllm.sampler import Sampler
from minivllm.scheduler_output import SchedulerOutput
from minivllm.speculative.config import speculation_of
from minivllm.speculative.draft_model import DraftModel, load_draft_model
from minivllm.weights.loader import load_model, load_model_config, resolve_model


class Worker:
    """A rank's share of the model, its share of every KV block, and the runner which works with both.

    Args:
        config: complete, with a `max_model_len`.
        tp: the other ranks; None: there are none.
        sampler: in place of `Sampler()`.
        attention_backend: in place of the one that `config.attention_backend` names.

    Raises:
        ValueError: the device, the memory or the number of ranks does not suit the model.
    """

    def __init__(
        self,
        config: EngineConfig,
        tp: TensorParallel | None = None,
        sampler: SamplerFunction | None = None,
        attention_backend: AttentionBackend | None = None,
    ) -> None:
        self.config, self.tp = config, tp or TensorParallel()
        shard = self.tp.shard
        folder = resolve_model(config.model)
        model_config = shard.config(load_model_config(folder))
        self.device = choose_device(config.device)
        if self.device.type == "cuda" and shard.size > 1:
            self.device = torch.device("cuda", shard.rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        parts = model_config, config.block_size, self.dtype, self.device
        if config.batch_invariant:
            if self.device.type != "cpu":
                raise ValueError(
                    f"batch_invariant=True is for CPUs only, and this engine is on {self.device}."
                )
            attention_backend = TorchAttention(*parts, piece=1)
        self.attention = attention_backend or make_attention_backend(config.attention_backend, *parts)
        # In this order: the KV cache gets what the weights leave, and CUDA graphs hold the addresses of both.
        model = load_model(folder, self.attention, self.dtype, self.device, shard)
        if config.batch_invariant:
            tile_linears(model)
        if shard.size > 1:
            parallelize(model, self.tp)
        speculation = speculation_of(config)
        draft_model = None
        if shard.rank == 0:
            draft_model = load_draft_model(speculation, config, model, config.max_model_len)
        kv_cache = self._make_kv_cache(model, draft_model)
        steps: DecodeSteps | None = None
        # A sum over ranks inside a graph has not been tried on GPUs yet.
        if shard.size == 1 and can_replay(self.device, self.attention.name, config.enforce_eager):
            steps = DecodeGraphs(model, kv_cache, config.max_num_seqs, config.max_model_len)
        elif shard.size == 1 and can_compile(model, config.enforce_eager):
            steps = CompiledSteps(model, kv_cache, config.max_num_seqs)
        self.draft = None if draft_model is None else DraftModel(draft_model, kv_cache)
        drafter: Drafter | None = self.draft
        if shard.size > 1 and speculation is not None and speculation.model is not None:
            drafter = DraftsOfRankZero(self.draft, self.tp)
        self.runner = ModelRunner(model, kv_cache, sampler or Sampler(), steps, drafter)

    def execute_model(self, plan: SchedulerOutput) -> list[SequenceOutput]:
        """Carry out one step, together with all other ranks; every rank has the same outputs."""
        return self.runner.execute_model(plan)

    def num_blocks(self) -> tuple[int, int]:
        """Blocks on the device and in swap space; the same on all ranks."""
        return self.runner.kv_cache.num_blocks, self.runner.kv_cache.num_cpu_blocks

    def memory(self) -> MemoryReport:
        """Bytes which this rank holds."""
        model, kv_cache, draft = self.runner.model, self.runner.kv_cache, self.draft
        return MemoryReport(
            weights=model.nbytes,
            kv_cache=kv_cache.nbytes,
            workspace=getattr(self.attention, "workspace_nbytes", 0),
            num_blocks=kv_cache.num_blocks,
            num_tokens=kv_cache.num_blocks * kv_cache.block_size,
            bytes_per_token=model.config.kv_bytes_per_token(self.dtype.itemsize),
            draft_weights=0 if draft is None else draft.model.nbytes,
            draft_kv_cache=0 if draft is None else draft.kv_cache.nbytes,
        )

    def traffic(self) -> dict[str, tuple[int, int]]:
        """What this rank has put into each operation since the start: name -> (calls, bytes)."""
        return {name: (calls, self.tp.nbytes[name]) for name, calls in self.tp.calls.items()}

    def apply(self, function: Callable[[Worker], Any]) -> Any:
        """`function(worker)`, for what has no method here; sent by name, so it must stand in a module."""
        return function(self)

    def _make_kv_cache(self, model: Model, draft_model: Model | None) -> KVCache:
        """Size and allocate the blocks, on the device and in swap space.

        A draft model, which is on rank 0, has as many blocks of its own, out of the same bytes.

        Example, SmolLM2-135M in float32: a block of 16 takes 737,280 bytes, so swap_space_bytes=10**9 holds
        1,356 blocks. On three ranks a block takes a third on each, so each holds three times as many.
        """
        config = self.config
        models = [model] if draft_model is None else [model, draft_model]
        per_token = sum(each.config.kv_bytes_per_token(self.dtype.itemsize) for each in models)
        block_bytes = config.block_size * per_token
        num_blocks = derive_num_blocks(
            config, model, self.dtype, self.device, config.max_model_len, block_bytes
        )
        num_cpu_blocks = config.swap_space_bytes // block_bytes
        if self.tp.shard.size > 1:  # the scheduler hands out block ids that exist everywhere
            num_blocks, num_cpu_blocks = self.tp.smallest(num_blocks), self.tp.smallest(num_cpu_blocks)
        if config.preemption_mode == "swap" and num_cpu_blocks == 0:
            raise ValueError(
                f"swap_space_bytes ({config.swap_space_bytes}) holds no block: one takes {block_bytes} bytes."
            )
        return KVCache(model.config, num_blocks, config.block_size, self.dtype, self.device, num_cpu_blocks)


def choose_device(device: str) -> torch.device:
    """ "auto": CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError('device="cuda", but torch finds no CUDA device here. Use device="cpu" or "auto".')
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto": float32 on a CPU; bfloat16 on GPUs that have it, else float16 (T4, V100)."""
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if dtype == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise ValueError(
            f"bfloat16 needs a GPU of compute capability 8.0 or newer; {torch.cuda.get_device_name(device)} "
            f'has {".".join(map(str, torch.cuda.get_device_capability(device)))}. Use dtype="float16".'
        )
    return getattr(torch, dtype)

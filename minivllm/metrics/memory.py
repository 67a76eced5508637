"""How much memory goes where: the question "why does it take all my GPU memory?", answered with numbers.

The weights are given, the working memory of a step is measured, and what is left over becomes KV blocks::

    |<------------------ gpu_memory_utilization * device memory ------------------>|
    |     weights     |  working memory of the largest step  |  KV cache: N blocks  |

On a CPU there is no such natural limit, so `CPU_KV_CACHE_BYTES` stands in for it. Fresh zeros cost nothing
there until they are written, so a pool that is larger than needed takes no memory.

Example, SmolLM2-135M in float32 on a CPU: 46,080 bytes per token, so a block of 16 takes 720 KiB. 64
sequences of 2,048 tokens could use 8,192 blocks, 5.6 GiB; the limit of 1 GiB gives 1,456.

vLLM V1: `Worker.determine_available_memory` in `vllm/v1/worker/gpu_worker.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from minivllm.attention import AttentionMetadata
from minivllm.block_table import cdiv
from minivllm.config import EngineConfig
from minivllm.kv_cache import KVCache
from minivllm.model import Model

# Small enough for a laptop beside a browser, large enough for 23,296 tokens of SmolLM2-135M in float32.
CPU_KV_CACHE_BYTES = 1 << 30


_ADD_UP = ("weights", "kv_cache", "workspace", "bytes_per_token", "draft_weights", "draft_kv_cache")


@dataclass(frozen=True)
class MemoryReport:
    """Where the memory is. Bytes, except the three counts.

    `kv_cache` is what is reserved. On a CPU the process takes less until the blocks have been written once.
    """

    weights: int
    kv_cache: int
    workspace: int
    num_blocks: int
    num_tokens: int
    bytes_per_token: int
    draft_weights: int = 0
    draft_kv_cache: int = 0

    def __str__(self) -> str:
        mib = 1 << 20
        draft = f"draft model: weights {self.draft_weights / mib:.1f} MiB, KV cache in the same blocks "
        draft += f"{self.draft_kv_cache / mib:.1f} MiB; "
        return (draft if self.draft_weights else "") + (
            f"weights {self.weights / mib:.1f} MiB, KV cache {self.kv_cache / mib:.1f} MiB = "
            f"{self.num_blocks} blocks = {self.num_tokens} tokens of {self.bytes_per_token / 1024:.1f} KiB, "
            f"attention workspace {self.workspace / mib:.1f} MiB"
        )


def total(reports: list[MemoryReport]) -> MemoryReport:
    """The memory of all workers together. They hold the same blocks, each its own heads of them."""
    sums = {name: sum(getattr(report, name) for report in reports) for name in _ADD_UP}
    return replace(reports[0], **sums)


def derive_num_blocks(
    config: EngineConfig,
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    block_bytes: int,
) -> int:
    """Blocks of the KV cache: as told, or from the memory at hand. A block takes `block_bytes`.

    On a GPU call this before anything else is allocated there: it reads how much has ever been in use.

    Raises:
        ValueError: the memory does not hold a single block.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    if config.kv_cache_memory_bytes is not None:
        available = config.kv_cache_memory_bytes
    elif device.type == "cuda":
        run_largest_step(model, config.max_num_batched_tokens, config.block_size, dtype, device)
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        # What other programs hold, this process's weights, and the most it ever held besides them.
        others = total - free - torch.cuda.memory_reserved()
        peak = torch.cuda.max_memory_reserved()
        available = int(config.gpu_memory_utilization * total) - others - peak
    else:
        # No more blocks than all sequences together can use.
        useful = config.max_num_seqs * cdiv(max_model_len, config.block_size)
        available = min(CPU_KV_CACHE_BYTES, useful * block_bytes)
    if available < block_bytes:
        raise ValueError(
            f"No memory for the KV cache: {available} bytes are available and one block of "
            f"{config.block_size} tokens takes {block_bytes}. Raise kv_cache_memory_bytes or "
            f"gpu_memory_utilization, or lower max_num_batched_tokens."
        )
    return available // block_bytes


@torch.inference_mode()
def run_largest_step(
    model: Model, num_tokens: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> None:
    """One prefill of `num_tokens` tokens into a throw-away KV cache, to see how much memory a step takes.

    One long sequence is the worst case: its activations are as large as those of any batch with that many
    tokens, and its attention is larger than that of several short ones.
    """
    num_blocks = cdiv(num_tokens, block_size)
    kv_cache = KVCache(model.config, num_blocks, block_size, dtype, device)
    positions = torch.arange(num_tokens, device=device)
    metadata = AttentionMetadata(
        slot_mapping=positions,
        block_tables=torch.arange(num_blocks, dtype=torch.int32, device=device)[None],
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32, device=device),
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32, device=device),
        max_query_len=num_tokens,
        max_seq_len=num_tokens,
    )
    # The budget may exceed the longest sequence; positions beyond the model's table would be an error.
    in_range = positions % model.config.max_position_embeddings
    model.compute_logits(model(torch.zeros_like(positions), in_range, kv_cache, metadata)[-1:])

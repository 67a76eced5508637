"""The KV cache: the physical tensors behind the block ids, and the four ways to move what is in them.

The memory manager (`block_pool`, `kv_cache_manager`) decides which sequence owns which block and never
touches a tensor; this module owns the tensors and decides nothing. A block id is a row number here::

    block_size = 4, one layer, K (V looks the same):          slot = block_id * 4 + offset

    block 0   [ slot  0 | slot  1 | slot  2 | slot  3 ]
      ...
    block 2   [ slot  8 | slot  9 |   ...   |   ...   ]   <- tokens 4, 5 of the example sequence
      ...
    block 7   [ slot 28 | slot 29 | slot 30 | slot 31 ]   <- tokens 0, 1, 2, 3

The example sequence has 6 tokens and the block table [7, 2], so its slot_mapping is
[28, 29, 30, 31, 8, 9]: consecutive tokens, scattered blocks. Each slot holds one token's (Hkv, D) keys.

Paper: sections 4.2 (blocks), 4.4 (copy-on-write), 4.5 (swapping).
vLLM V1: the tensors are made in `v1/worker/gpu_model_runner.py`, the copies in `csrc/cache_kernels.cu`.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from minivllm.config import ModelConfig, require_int
from minivllm.scheduler_output import BlockPair

_ALIGNMENT = 2 << 20  # bytes: a large page


class KVCache:
    """K and V of every layer, cut into blocks, and a swap space of the same shape in CPU memory.

    `key[layer]` and `value[layer]` are views of shape (B, S, Hkv, D); so are `cpu_key[layer]` and
    `cpu_value[layer]`, with B = `num_cpu_blocks`. All layers lie in one tensor, `blocks`, of shape
    (L, 2, B, S, Hkv, D), so that moving a block moves it in all layers with one call.

    Everything starts as zeros and not as uninitialised memory: attention multiplies the unused slots at
    the end of a block by a weight of 0, and 0 * NaN is NaN.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        num_cpu_blocks: int = 0,
    ) -> None:
        require_int("num_blocks", num_blocks, minimum=1)
        require_int("block_size", block_size, minimum=1)
        require_int("num_cpu_blocks", num_cpu_blocks, minimum=0)
        device = torch.device(device)
        slot_shape = (block_size, config.num_key_value_heads, config.head_dim)
        layers = config.num_hidden_layers
        self.num_blocks, self.num_cpu_blocks, self.block_size = num_blocks, num_cpu_blocks, block_size
        shape, cpu_shape = (layers, 2, num_blocks, *slot_shape), (layers, 2, num_cpu_blocks, *slot_shape)
        on_cpu = device.type == "cpu"
        self.blocks = _lazy_zeros(shape, dtype) if on_cpu else torch.zeros(shape, dtype=dtype, device=device)
        # Not pinned: the blocks of a swap are gathered into a new tensor first, and that one crosses over.
        self._cpu_blocks = _lazy_zeros(cpu_shape, dtype)
        self.key = [layer[0] for layer in self.blocks]  # L x (B, S, Hkv, D)
        self.value = [layer[1] for layer in self.blocks]
        self.cpu_key = [layer[0] for layer in self._cpu_blocks]
        self.cpu_value = [layer[1] for layer in self._cpu_blocks]
        # The same memory seen as slots, for `write`: made once, because a view costs about 2 us.
        self._key_slots = [key.flatten(0, 1) for key in self.key]  # L x (B * S, Hkv, D)
        self._value_slots = [value.flatten(0, 1) for value in self.value]

    @property
    def nbytes(self) -> int:
        """Bytes on the device (the swap space is not counted)."""
        return self.blocks.nbytes

    def write(self, layer: int, key: Tensor, value: Tensor, slot_mapping: Tensor) -> None:
        """Put K and V of this step's tokens into their slots.

        This runs once per layer and step, so it is one indexed write per tensor and checks no number.
        Every slot has to be real. The padding slot -1 exists only in captured CUDA graphs, which write
        with the Triton kernel `reshape_and_cache` (it skips -1); a caller with padding drops those rows
        first, once per step and not once per layer. On a CPU a -1 raises IndexError, because `index_copy_`
        (unlike `slots[slot_mapping] = key`) does not take a negative index to count from the end.

        Args:
            layer: which layer's cache.
            key: (T, Hkv, D), any strides: usually a slice of the packed QKV projection. Rounded to the
                cache's dtype.
            value: (T, Hkv, D).
            slot_mapping: (T,) int64, all different.
        """
        assert key.shape == value.shape == (slot_mapping.shape[0], *self._key_slots[layer].shape[1:])
        for slots, new in ((self._key_slots[layer], key), (self._value_slots[layer], value)):
            slots.index_copy_(0, slot_mapping, new.to(slots.dtype))

    def copy_blocks(self, pairs: tuple[BlockPair, ...]) -> None:
        """Copy blocks on the device, in all layers: the copy of copy-on-write.

        All sources are read before any destination is written, so a block may be the source of one pair
        and the destination of another; its old content is copied then.
        """
        self._move(self.blocks, self.blocks, pairs)

    def swap_out(self, pairs: tuple[BlockPair, ...]) -> None:
        """Copy blocks of a preempted group from the device to the swap space: pairs (device, cpu)."""
        self._move(self.blocks, self._cpu_blocks, pairs)

    def swap_in(self, pairs: tuple[BlockPair, ...]) -> None:
        """Copy blocks of a resumed group from the swap space to the device: pairs (cpu, device)."""
        self._move(self._cpu_blocks, self.blocks, pairs)

    @staticmethod
    def _move(source: Tensor, destination: Tensor, pairs: tuple[BlockPair, ...]) -> None:
        """Copy `destination[:, :, dst] = source[:, :, src]` for each pair, checked first."""
        if not pairs:
            return
        sources, destinations = zip(*pairs, strict=True)
        for name, blocks, tensor in (("source", sources, source), ("destination", destinations, destination)):
            wrong = [block for block in blocks if not 0 <= block < tensor.shape[2]]
            if wrong:
                raise ValueError(f"{name} block ids {wrong} are not in [0, {tensor.shape[2]}).")
        if len(set(destinations)) != len(destinations):
            raise ValueError(
                f"two copies into one block in {list(pairs)}: the result would be a matter of luck."
            )
        moved = source.index_select(2, torch.tensor(sources, device=source.device))  # (L, 2, n, S, Hkv, D)
        index = torch.tensor(destinations, device=destination.device)
        destination.index_copy_(2, index, moved.to(destination.device))


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in CPU memory that take no memory until something is written to them.

    The operating system hands out pages of zeros when they are first touched. `mmap` leaves it at that;
    `torch.zeros` writes the zeros itself, so a pool of 1 GiB would take 1 GiB for the first short prompt.
    Linux is asked for pages of 2 MiB instead of 4 KiB: in a virtual machine each page can take 10 us, and the
    1,024 tokens of a prompt have 11,520 small ones (SmolLM2-135M, float32).
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(shape, dtype=dtype)
    try:
        memory = mmap.mmap(-1, num_bytes + _ALIGNMENT)
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"No memory for the KV cache: {shape[2]} blocks take {num_bytes} bytes. Lower num_blocks, "
            f"kv_cache_memory_bytes or swap_space_bytes."
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    zeros = torch.frombuffer(memory, dtype=torch.uint8)
    start = -zeros.data_ptr() % _ALIGNMENT
    return zeros[start : start + num_bytes].view(dtype).view(shape)

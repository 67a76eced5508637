"""How a kernel is launched on which chip: tile sizes, warps, stages and splits, as plain if/else.

Triton has an autotuner (`@triton.autotune`). It is not used here, for four reasons: it times candidates in
the middle of serving, its lookup costs tens of microseconds per launch, a CUDA graph freezes its choice,
and it cannot run without a GPU. Functions that can be called, read and tested anywhere do the same job; the
benchmark (`python -m minivllm bench kernels`) is where their numbers are to be checked.

Four words::

    BLOCK_N      keys handled at once, independent of the block size S of the KV cache
    BLOCK_M      query rows handled at once; tl.dot wants at least 16 of them to fill a tensor core
    num_warps    groups of 32 threads that a program runs on
    num_stages   how many loads Triton's pipeliner keeps under way. A paged load is two loads in a row (the
                 block number, then the key), so 3 stages buffer one tile of keys and 5 buffer two

With one tile buffered a program loads and computes by turns, and another program on the same multiprocessor
computes meanwhile; so small tiles and several programs per multiprocessor are as good as deep pipelines, and
do not leave a second, half empty wave of programs at the end. One tile below has no such neighbour: the 128
rows of a long prompt on an H100 take 177 registers in each of 256 threads, which leaves room for one program,
so every turn of its loop waits for a whole load. Whether 5 stages are faster there `bench kernels` shows.

Two things bound tiles. Shared memory, where tiles wait between load and use: 64 KB per program on a T4 (7.5),
99 KB on 8.6, 8.9 and 12.0, 163 KB on an A100 (8.0), 227 KB on an H100 (9.0). And registers: 255 per thread;
what does not fit is written to memory in the middle of the loop ("spilled"). Both are known without a GPU:
`python -m minivllm bench resources` compiles every kernel with these choices for all six chips and shows what
they need, and `tests/kernels/test_kernel_aot.py` fails if one does not fit.

Sources: "The Anatomy of a Triton Attention Kernel" (arXiv 2511.11581) for heuristics in place of autotuning;
Flash-Decoding for the splits. vLLM V1: `vllm/v1/attention/ops/triton_unified_attention.py`.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from .common import INTERPRETED, triton

MAX_SPLITS = 32
MIN_TOKENS_PER_SPLIT = 256
PROGRAMS_PER_SM = 4


@dataclass(frozen=True)
class Chip:
    """What the choices below depend on."""

    capability: int  # 10 * major + minor, for example 90 for an H100; 0 for the interpreter
    num_sms: int  # streaming multiprocessors; each runs a few programs side by side


@dataclass(frozen=True)
class Tiles:
    """One launch configuration. `block_m` and `block_n` are in query rows and keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Switches:
    """Variants of the attention kernels: the same result, by other machine code. Which is faster only a GPU
    can tell (`bench kernels` times each alone); what each does to the machine code, `bench resources` counts.

    Attributes:
        min_tokens_per_split: a split gets at least so many tokens, and later ones none. In a CUDA graph the
            number of splits follows the longest sequence possible, so that without this a sequence of 500
            tokens is cut into 8 splits of one tile, beside 24 empty ones.
        peel: whole tiles are read and scored without a mask, and only the last ones with it; the mask of the
            head dimension is left out where it is a power of two.
        by_block: the block number is loaded and multiplied once per block instead of once per key.
    """

    min_tokens_per_split: int = 0
    peel: bool = False
    by_block: bool = False


SWITCHES = Switches()
"""Those the engine runs with."""
VARIANTS = {
    "at least 256 tokens per split": Switches(min_tokens_per_split=256),
    "masked tail": Switches(peel=True),
    "one number per block": Switches(by_block=True),
    "all three": Switches(256, peel=True, by_block=True),
}
"""Those to be timed and counted, by name."""


def whole_blocks(*caches: torch.Tensor) -> bool:
    """Whether `Switches.by_block` is possible.

    A tile has to be whole blocks or part of one. Its number of keys is a power of two, so the block size must
    be one as well. And each row of a cache (B, S, Hkv, D) has to begin at a multiple of 16 elements.
    """
    block_size = caches[0].shape[1]
    aligned = all(stride % 16 == 0 for cache in caches for stride in cache.stride()[:2])
    return aligned and block_size & (block_size - 1) == 0


@lru_cache(maxsize=16)
def chip_of(device: torch.device) -> Chip:
    """The chip behind `device`. The interpreter poses as one slow multiprocessor."""
    if INTERPRETED:
        return Chip(capability=0, num_sms=1)
    properties = torch.cuda.get_device_properties(device)
    return Chip(properties.major * 10 + properties.minor, properties.multi_processor_count)


def row_bytes(head_dim: int, element_size: int) -> int:
    """Bytes of one key as a tile holds it: `tl.arange` needs a power of two, so 80 is padded to 128."""
    return max(16, triton.next_power_of_2(head_dim)) * element_size


def decode_tiles(chip: Chip, head_dim: int, element_size: int) -> Tiles:
    """Tiles of `paged_attention`: one query token per sequence, so memory speed decides."""
    if chip.capability == 0:
        # The interpreter pays for each operation, not for its size: few, large tiles.
        return Tiles(block_m=16, block_n=256, num_warps=4, num_stages=1)
    row = row_bytes(head_dim, element_size)  # 256 bytes for head_dim 128 in float16
    if chip.capability < 80:
        # No asynchronous copies and no tensor cores through Triton: pipelining would only cost space.
        return Tiles(block_m=16, block_n=32 if row <= 256 else 16, num_warps=4, num_stages=1)
    if row <= 256:
        return Tiles(block_m=16, block_n=64, num_warps=4, num_stages=3)
    if row <= 512:
        return Tiles(block_m=16, block_n=32, num_warps=4, num_stages=3)
    return Tiles(block_m=16, block_n=16, num_warps=4, num_stages=3)


def prefill_tiles(chip: Chip, head_dim: int, element_size: int, mean_query_len: float) -> Tiles:
    """Tiles of `prefill_attention`. Long queries reuse each key tile in more rows.

    `mean_query_len` is T / R. The longest query would say more, but it is known only on the device; asking
    for it would make the host wait.
    """
    if chip.capability == 0:
        return Tiles(block_m=64, block_n=256, num_warps=4, num_stages=1)
    row = row_bytes(head_dim, element_size)
    if chip.capability < 80:
        return Tiles(block_m=16, block_n=32 if row <= 128 else 16, num_warps=4, num_stages=1)
    if mean_query_len <= 4:  # nearly all decode rows: do not compute 60 empty rows for each
        return Tiles(
            block_m=16, block_n=64 if row <= 256 else 32 if row <= 512 else 16, num_warps=4, num_stages=3
        )
    if element_size == 4:
        # Exact float32 products are no work for tensor cores. Ordinary instructions, all of a tile's in a row
        # and with operands in registers: anything larger is written to memory and back.
        return Tiles(16, 16, num_warps=4, num_stages=2) if row > 512 else Tiles(32, 32, 8, num_stages=2)
    if chip.capability == 90 and row <= 256:
        many = mean_query_len >= 256
        return Tiles(block_m=128 if many else 64, block_n=64, num_warps=8 if many else 4, num_stages=3)
    if chip.capability == 90:
        return Tiles(block_m=64, block_n=32, num_warps=4, num_stages=2)
    # Hopper's tensor cores read a tile from shared memory, all others from registers. A thread has 255: with
    # 64 rows of 64 keys it needs a few more at head_dim 128. So half the keys, at 256 also twice the warps.
    few_warps = row <= 256
    return Tiles(block_m=64, block_n=32, num_warps=4 if few_warps else 8, num_stages=3 if few_warps else 2)


def choose_num_splits(chip: Chip, num_programs: int, max_tokens: int) -> int:
    """The number of parts in which each sequence is attended to in parallel (split-KV); a power of two.

    A decode batch of R sequences with Hkv KV heads is R * Hkv programs. One long sequence on an H100 is 8
    programs for 132 multiprocessors: 94% of the chip would be idle. So split until each multiprocessor has
    up to four programs, but not into parts so short that merging them costs more than they save.

    Args:
        chip: where it runs.
        num_programs: programs without splitting, R * Hkv as a rule.
        max_tokens: upper bound of the sequence lengths, known without asking the device: the width of the
            block tables times the block size. A sequence that is shorter leaves some of its splits empty.

    Example, H100 (132 multiprocessors, 528 programs wanted), 8 KV heads::

        R = 64: 512 programs             -> 1 split
        R = 16: 128 programs, 4096 tokens -> 4 splits, 512 programs
        R = 1:    8 programs, 16384 tokens -> 32 splits, 256 programs of 512 tokens
    """
    wanted = chip.num_sms * PROGRAMS_PER_SM
    splits = 1
    while (
        splits < MAX_SPLITS
        and num_programs * splits * 2 <= wanted
        and splits * 2 * MIN_TOKENS_PER_SPLIT <= max_tokens
    ):
        splits *= 2
    return splits

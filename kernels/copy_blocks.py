"""Copy whole blocks inside the KV cache: the copy of copy-on-write.

Two sequences share a block until one of them writes into it. Just before that write the scheduler gives the
writer a block of its own and asks for a copy of what is in it, as a pair (source, destination)::

    before   A: [7, 2]    B: [7, 2]      ref_count of block 2 is 2; B is about to write slot 2*S + 3
    pairs    (2, 5)                      copy block 2 to block 5
    after    A: [7, 2]    B: [7, 5]      B writes slot 5*S + 3; A's block is untouched

One program copies LANES elements of one block, keys and values. The pairs run at the same time, so a block
may not be both a source and a destination: a fresh destination block never is.

Example: S = 16, Hkv = 3, D = 64 is 3072 elements a block. `tl.arange` wants a power of two, so one program
has LANES = 4096 lanes of which 1024 are masked; for Hkv = 8, D = 128 a block has 16,384 elements and four
programs share it::

    grid (N pairs, 4)      program (0, 0)      program (0, 1)      program (0, 2)       program (0, 3)
    pair 0: block 2 -> 5   lanes 0 .. 4095     4096 .. 8191        8192 .. 12287        12288 .. 16383

Cost: each element of a block is read and written once, K and V, in every layer. That is little beside a
step: a sequence copies at most the one block that it is about to write into. It has to run before the forward
pass, which writes into the copy.

Paper: section 4.4 and figure 8. vLLM v0.1: `copy_blocks_kernel` in `csrc/cache_kernels.cu` (V1 has dropped
it, as only prefixes of full blocks are shared there).
"""

import torch

from .common import (
    INDEX_DTYPES,
    check_cache,
    check_devices,
    check_dtypes,
    check_range,
    check_tensor,
    tl,
    triton,
)


def copy_blocks_reference(
    key_cache: torch.Tensor, value_cache: torch.Tensor, block_pairs: torch.Tensor
) -> None:
    """The same copy, one pair after the other. Same arguments as `copy_blocks`.

    One after the other is the same as all at once here, as no destination is a source.
    """
    for source, destination in block_pairs.tolist():
        key_cache[destination] = key_cache[source]  # (S, Hkv, D)
        value_cache[destination] = value_cache[source]


@triton.jit
def _copy_blocks_kernel(
    key_cache_ptr,  # (B, S, Hkv, D)
    value_cache_ptr,  # (B, S, Hkv, D)
    block_pairs_ptr,  # (N, 2), contiguous
    key_stride_block,
    key_stride_slot,
    key_stride_head,
    value_stride_block,
    value_stride_slot,
    value_stride_head,
    S: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    LANES: tl.constexpr,
):
    """One program: LANES elements of one pair's block, keys and values.

    The grid has two axes, (pair, piece of the block). `tl.program_id(0)` and `(1)` say where in it a program
    stands; all run in any order or at the same time.
    """
    # Two scalar loads: row `pair` of the (N, 2) table. 64 bits before the multiplication with a stride:
    # a block number times the elements of a block passes 2^31 in a cache of a few gigabytes.
    pair = tl.program_id(0).to(tl.int64)
    source = tl.load(block_pairs_ptr + 2 * pair).to(tl.int64)
    destination = tl.load(block_pairs_ptr + 2 * pair + 1).to(tl.int64)

    # An element of the block, taken apart into its three coordinates, because the cache may be a view.
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    # The last program's lanes may reach beyond the block: into the next one, which is somebody else's.
    mask = lane < S * HKV * D
    # lane = (slot * HKV + head) * D + d, solved for its parts. Example S = 16, HKV = 3, D = 64: lane 451 is
    # slot 2, head 1, d 3, as 2 * 192 + 1 * 64 + 3 = 451.
    slot = lane // (HKV * D)
    head = lane // D % HKV
    d = lane % D

    # Where the element is in block 0. Source and destination differ from it by a multiple of the block stride
    # alone, so the tile of addresses is made once and used for both.
    key = key_cache_ptr + slot * key_stride_slot + head * key_stride_head + d
    value = value_cache_ptr + slot * value_stride_slot + head * value_stride_head + d
    # Both loads before both stores: the memory system works on K and V at the same time.
    k = tl.load(key + source * key_stride_block, mask=mask, other=0.0)
    v = tl.load(value + source * value_stride_block, mask=mask, other=0.0)
    tl.store(key + destination * key_stride_block, k, mask=mask)
    tl.store(value + destination * value_stride_block, v, mask=mask)


def copy_blocks(key_cache: torch.Tensor, value_cache: torch.Tensor, block_pairs: torch.Tensor) -> None:
    """Copy blocks of one layer's KV cache onto others, in place.

    Args:
        key_cache: (B, S, Hkv, D), possibly a non-contiguous view.
        value_cache: (B, S, Hkv, D).
        block_pairs: (N, 2) int64 (int32 also works), rows (source, destination). No block may be a
            destination twice, or a source of one pair and the destination of another.

    Raises:
        TypeError: a dtype is not supported.
        ValueError: shapes or devices do not fit together, or (looked up on the CPU only) a pair names a block
            that does not exist.
    """
    check_cache(key_cache, value_cache)
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    check_tensor("block_pairs", block_pairs, ("N", 2))
    check_dtypes(INDEX_DTYPES, block_pairs=block_pairs)
    check_devices(key_cache=key_cache, value_cache=value_cache, block_pairs=block_pairs)
    check_range("block_pairs", block_pairs, 0, num_blocks)
    # The usual case, as most steps copy nothing: spare the launch.
    if block_pairs.shape[0] == 0:
        return

    # At most 4096 lanes, so that a large block is spread over several programs, and thus multiprocessors.
    elements = block_size * num_kv_heads * head_dim
    lanes = min(triton.next_power_of_2(elements), 4096)
    _copy_blocks_kernel[(block_pairs.shape[0], triton.cdiv(elements, lanes))](
        key_cache,
        value_cache,
        block_pairs.contiguous(),
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        S=block_size,
        HKV=num_kv_heads,
        D=head_dim,
        LANES=lanes,
        num_warps=4,
    )

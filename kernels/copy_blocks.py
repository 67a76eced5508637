"""Copy whole blocks inside the KV cache: the copy of copy-on-write.

Two sequences share a block until one of them writes into it. Just before that write the scheduler gives the
writer a block of its own and asks for a copy of what is in it, as a pair (source, destination)::

    before   A: [7, 2]    B: [7, 2]      ref_count of block 2 is 2; B is about to write slot 2*S + 3
    pairs    (2, 5)                      copy block 2 to block 5
    after    A: [7, 2]    B: [7, 5]      B writes slot 5*S + 3; A's block is untouched

One program copies LANES elements of one block, keys and values. The pairs run at the same time, so a block
may not be both a source and a destination: a fresh destination block never is.

Paper: section 4.4 and figure 8. vLLM v0.1: `copy_blocks_kernel` in `csrc/cache_kernels.cu` (V1 has dropped
it, as only prefixes of full blocks are shared there).
"""

import torch

from kernels.common import (
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
    """The same copy, one pair after the other. Same arguments as `copy_blocks`."""
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
    pair = tl.program_id(0).to(tl.int64)
    source = tl.load(block_pairs_ptr + 2 * pair).to(tl.int64)
    destination = tl.load(block_pairs_ptr + 2 * pair + 1).to(tl.int64)

    # An element of the block, taken apart into its three coordinates, because the cache may be a view.
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    mask = lane < S * HKV * D
    slot = lane // (HKV * D)
    head = lane // D % HKV
    d = lane % D

    key = key_cache_ptr + slot * key_stride_slot + head * key_stride_head + d
    value = value_cache_ptr + slot * value_stride_slot + head * value_stride_head + d
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
    """
    check_cache(key_cache, value_cache)
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    check_tensor("block_pairs", block_pairs, ("N", 2))
    check_dtypes(INDEX_DTYPES, block_pairs=block_pairs)
    check_devices(key_cache=key_cache, value_cache=value_cache, block_pairs=block_pairs)
    check_range("block_pairs", block_pairs, 0, num_blocks)
    if block_pairs.shape[0] == 0:
        return

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

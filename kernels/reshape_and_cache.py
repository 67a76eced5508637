"""Write the keys and values of this step's tokens into their slots of the KV cache.

The model computes K and V for T tokens of many sequences, packed in one batch. `slot_mapping` says where in
the cache each token's K and V belong. A slot is a flat number: block * S + offset in the block::

    block_size S = 4                          slot_mapping = [28, 29, 8, -1]

    token 0 --> slot 28 = 7 * 4 + 0           key_cache (B, S, Hkv, D)
    token 1 --> slot 29 = 7 * 4 + 1                        offset 0    1    2    3
    token 2 --> slot  8 = 2 * 4 + 0             block 2 [  tok 2 |    |    |    ]
    token 3 --> -1: padding, skipped            ...
                                                block 7 [  tok 0 | tok 1 |  |   ]

One program per token. The kernel is a pure scatter: the address comes out of a tensor, nothing is computed.
Two things have to be right all the same:

* `Hkv * D` is often not a power of two (SmolLM2: 3 * 64 = 192), but `tl.arange` needs one. The tile is padded
  to 256 lanes and the last 64 are masked off. An unmasked store would overwrite the next slot.
* `block * stride` needs 64 bits: a cache of 4.6 GB has more than 2^31 elements.

Example, Hkv = 3, D = 64: lane 130 belongs to head 130 // 64 = 2 and is its number 130 % 64 = 2. For token 1
above the lane moves a number, counted in elements and with everything contiguous::

    from   key        1 * 192 + 2 * 64 + 2                       = 322
    to     key_cache  7 * (4 * 192) + 1 * 192 + 2 * 64 + 2       = 5698       block 7, offset 1, head 2, d 2

Cost: 2 * Hkv * D numbers read and written per token, and nothing else; that is small beside the matrix
products of a layer, but it is a launch in every layer. The write has to come before attention in the same
layer: the attention kernels read the keys of this step's tokens out of the KV cache, too.

Paper: section 5.1, "fused reshape and block write". vLLM V1: `csrc/cache_kernels.cu`,
`vllm/v1/attention/ops/triton_reshape_and_cache_flash.py`.
"""

import torch

from .common import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    check_cache,
    check_devices,
    check_dtypes,
    check_range,
    check_tensor,
    tl,
    triton,
)


def reshape_and_cache_reference(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """The same write, one token after the other. Same arguments as `reshape_and_cache`.

    The slow twin, and the oracle of the tests: slot 28 with blocks of 4 is [28 // 4, 28 % 4] = [7, 0].
    """
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            key_cache[slot // block_size, slot % block_size] = key[token]  # (Hkv, D)
            value_cache[slot // block_size, slot % block_size] = value[token]


@triton.jit
def _reshape_and_cache_kernel(
    key_ptr,  # (T, Hkv, D)
    value_ptr,  # (T, Hkv, D)
    key_cache_ptr,  # (B, S, Hkv, D)
    value_cache_ptr,  # (B, S, Hkv, D)
    slot_mapping_ptr,  # (T,)
    key_stride_token,
    key_stride_head,
    value_stride_token,
    value_stride_head,
    key_cache_stride_block,
    key_cache_stride_slot,
    key_cache_stride_head,
    value_cache_stride_block,
    value_cache_stride_slot,
    value_cache_stride_head,
    S: tl.constexpr,
    HKV: tl.constexpr,
    D: tl.constexpr,
    LANES: tl.constexpr,  # next power of two of HKV * D
):
    """One program: one token's row of Hkv * D keys and of as many values, to the token's slot.

    Every tensor comes with its strides, because none has to be contiguous: key and value are usually slices
    of a fused qkv tensor, the caches one layer of a larger one. Only the last axis must have stride 1.
    S, HKV, D and LANES are constexpr: `tl.arange` insists on it for LANES, and dividing by a known number
    is cheap.
    """
    # Which of the T programs am I? 64 bits, as all that follows is multiplied by strides.
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token).to(tl.int64)
    # Padding: a batch recorded as a CUDA graph has a fixed number of rows, and some stand for no token.
    # `slot` is a scalar, so the whole program leaves; single lanes of a tile can only be masked.
    if slot < 0:
        return
    # The two coordinates of a slot, as in the picture. A token's row is in one piece, so this is done once.
    block = slot // S
    offset = slot % S

    # All heads as one flat row of lanes and not a tile (heads, D): one power of two to pad to, not two. For
    # 3 heads of 64 that makes 256 lanes; 4 x 64 is no better here, but for 3 of 80 it is 256 against 4 x 128.
    lane = tl.arange(0, LANES)
    mask = lane < HKV * D
    # Back to two coordinates, because the strides between heads may differ on the two sides.
    head = lane // D
    d = lane % D

    # `other` is what masked lanes get. They are not stored, but they should not be undefined either.
    key = tl.load(key_ptr + token * key_stride_token + head * key_stride_head + d, mask=mask, other=0.0)
    value = tl.load(
        value_ptr + token * value_stride_token + head * value_stride_head + d, mask=mask, other=0.0
    )
    # Where the slot begins: a pointer plus a number is again a pointer, counted in elements, not bytes.
    key_row = key_cache_ptr + block * key_cache_stride_block + offset * key_cache_stride_slot
    value_row = value_cache_ptr + block * value_cache_stride_block + offset * value_cache_stride_slot
    tl.store(key_row + head * key_cache_stride_head + d, key, mask=mask)
    tl.store(value_row + head * value_cache_stride_head + d, value, mask=mask)


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Write each token's key and value into its slot, in place; everything else stays untouched.

    Args:
        key: (T, Hkv, D); may be a slice of a fused qkv tensor.
        value: (T, Hkv, D).
        key_cache: (B, S, Hkv, D); may be a view, such as one layer of a larger tensor.
        value_cache: (B, S, Hkv, D).
        slot_mapping: (T,) int64 (int32 also works); -1 skips the token. No slot may appear twice: the
            programs run in no fixed order, so either of two writes might win.

    Raises:
        TypeError: a dtype is not supported, or the four float tensors differ in theirs.
        ValueError: shapes do not fit together, the devices differ, or (looked up on the CPU only) a slot lies
            outside of [-1, B * S).
    """
    check_cache(key_cache, value_cache)
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    check_tensor("key", key, ("T", num_kv_heads, head_dim))
    num_tokens = key.shape[0]
    check_tensor("value", value, (num_tokens, num_kv_heads, head_dim))
    check_tensor("slot_mapping", slot_mapping, (num_tokens,))
    check_dtypes(FLOAT_DTYPES, key=key, value=value, key_cache=key_cache, value_cache=value_cache)
    check_dtypes(INDEX_DTYPES, slot_mapping=slot_mapping)
    check_devices(
        key=key, value=value, key_cache=key_cache, value_cache=value_cache, slot_mapping=slot_mapping
    )
    # A slot too large would be a write into foreign memory: on a CPU that ends the process.
    check_range("slot_mapping", slot_mapping, -1, num_blocks * block_size)
    if num_tokens == 0:
        return

    # A warp is 32 threads. 256 lanes on 4 warps are 2 numbers per thread; 4096 lanes (32 heads of 128, none
    # grouped) on 8 warps are 16, as many as 2048 lanes on 4.
    lanes = triton.next_power_of_2(num_kv_heads * head_dim)
    _reshape_and_cache_kernel[(num_tokens,)](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        *key.stride()[:2],
        *value.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        S=block_size,
        HKV=num_kv_heads,
        D=head_dim,
        LANES=lanes,
        num_warps=4 if lanes <= 2048 else 8,
    )

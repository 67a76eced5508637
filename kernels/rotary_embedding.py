"""Rotary position embedding (RoPE), in place on queries and keys.

The position of a token is told to attention by rotating its query and key. The head's numbers are taken in
pairs; pair i of the token at position p is a point in the plane and is turned by the angle p * theta_i::

    x1' = x1 * cos(p theta_i) - x2 * sin(p theta_i)
    x2' = x2 * cos(p theta_i) + x1 * sin(p theta_i)

The product of a rotated query and a rotated key then depends on the distance of their positions only.

**Which pairs?** GPT-NeoX's and Llama's layout in Hugging Face format: element i goes with element i + half.
(The original RoPE and GPT-J pair 2i with 2i + 1; loading one layout's weights with the other's code gives
fluent nonsense.) With partial rotary only the first `rotary_dim` numbers of a head are turned::

    head   [ x1_0 x1_1 x1_2 | x2_0 x2_1 x2_2 | untouched .. ]         rotary_dim = 6, half = 3
               '---- pair 0 ----'

    row p of cos_sin_cache   [ cos_0 cos_1 cos_2 | sin_0 sin_1 sin_2 ]

One program a token: it loads the token's cos and sin once and turns all its heads, queries and keys. The tile
is (heads, half), both padded to powers of two. Arithmetic is in float32, rounded once at the end.

vLLM V1: `csrc/pos_encoding_kernels.cu`, with the same `cos_sin_cache`.
"""

import torch

from kernels.common import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    check_devices,
    check_dtypes,
    check_range,
    check_tensor,
    tl,
    triton,
)


def rotary_embedding_reference(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, cos_sin_cache: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in plain torch; returns new tensors and leaves its arguments alone."""
    cos, sin = cos_sin_cache[positions].float().chunk(2, dim=-1)  # (T, half) each
    half = cos.shape[-1]

    def rotate(x: torch.Tensor) -> torch.Tensor:  # (T, heads, D)
        x1, x2, rest = x.float().split([half, half, x.shape[-1] - 2 * half], dim=-1)
        c, s = cos[:, None, :], sin[:, None, :]
        return torch.cat([x1 * c - x2 * s, x2 * c + x1 * s, rest], dim=-1).to(x.dtype)

    return rotate(query), rotate(key)


@triton.jit
def _rotate_heads(
    row_ptr,  # one token's (heads, D)
    stride_head,
    cos,  # (LANES_HALF,) float32
    sin,
    NUM_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    LANES_HEADS: tl.constexpr,
    LANES_HALF: tl.constexpr,
):
    head = tl.arange(0, LANES_HEADS)
    i = tl.arange(0, LANES_HALF)
    first = row_ptr + head[:, None] * stride_head + i[None, :]
    mask = (head < NUM_HEADS)[:, None] & (i < HALF)[None, :]
    x1 = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(first + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(first, x1 * cos[None, :] - x2 * sin[None, :], mask=mask)
    tl.store(first + HALF, x2 * cos[None, :] + x1 * sin[None, :], mask=mask)


@triton.jit
def _rotary_kernel(
    positions_ptr,  # (T,)
    query_ptr,  # (T, Hq, D)
    key_ptr,  # (T, Hkv, D)
    cos_sin_ptr,  # (max_position, 2 * HALF)
    query_stride_token,
    query_stride_head,
    key_stride_token,
    key_stride_head,
    cos_sin_stride,
    HQ: tl.constexpr,
    HKV: tl.constexpr,
    HALF: tl.constexpr,
    LANES_HQ: tl.constexpr,
    LANES_HKV: tl.constexpr,
    LANES_HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token).to(tl.int64)
    i = tl.arange(0, LANES_HALF)
    row = cos_sin_ptr + position * cos_sin_stride + i
    cos = tl.load(row, mask=i < HALF, other=0.0).to(tl.float32)
    sin = tl.load(row + HALF, mask=i < HALF, other=0.0).to(tl.float32)
    query = query_ptr + token * query_stride_token
    key = key_ptr + token * key_stride_token
    _rotate_heads(query, query_stride_head, cos, sin, HQ, HALF, LANES_HQ, LANES_HALF)
    _rotate_heads(key, key_stride_head, cos, sin, HKV, HALF, LANES_HKV, LANES_HALF)


def rotary_embedding(
    positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor, cos_sin_cache: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate the heads of each token by its position, in place, and return `(query, key)`.

    Args:
        positions: (T,) int64 (int32 also works), each less than `max_position`.
        query: (T, Hq, D); may be a slice of a fused qkv tensor.
        key: (T, Hkv, D).
        cos_sin_cache: (max_position, rotary_dim), in each row the cosines, then the sines; rotary_dim is even
            and at most D. May be float32 while query and key are 16 bits wide.
    """
    check_tensor("query", query, ("T", "Hq", "D"))
    num_tokens, num_heads, head_dim = query.shape
    check_tensor("key", key, (num_tokens, "Hkv", head_dim))
    check_tensor("positions", positions, (num_tokens,))
    check_tensor("cos_sin_cache", cos_sin_cache, ("max_position", "rotary_dim"))
    max_position, rotary_dim = cos_sin_cache.shape
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise ValueError(
            f"rotary_dim, the width of cos_sin_cache, must be even and at most head_dim {head_dim}, "
            f"got {rotary_dim}."
        )
    check_dtypes(FLOAT_DTYPES, query=query, key=key)
    check_dtypes(FLOAT_DTYPES, cos_sin_cache=cos_sin_cache)
    check_dtypes(INDEX_DTYPES, positions=positions)
    check_devices(query=query, key=key, positions=positions, cos_sin_cache=cos_sin_cache)
    check_range("positions", positions, 0, max_position)
    if num_tokens == 0:
        return query, key

    half = rotary_dim // 2
    _rotary_kernel[(num_tokens,)](
        positions,
        query,
        key,
        cos_sin_cache,
        *query.stride()[:2],
        *key.stride()[:2],
        cos_sin_cache.stride(0),
        HQ=num_heads,
        HKV=key.shape[1],
        HALF=half,
        LANES_HQ=triton.next_power_of_2(num_heads),
        LANES_HKV=triton.next_power_of_2(key.shape[1]),
        LANES_HALF=triton.next_power_of_2(half),
        num_warps=4,
    )
    return query, key

"""Rotary position embedding (RoPE), in place on queries and keys.

Attention learns the position of a token from the rotation of its query and key. A head's numbers are taken in
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

Example, head_dim 4, half 2, position 1, theta = (1, 0.01): cos = (0.54, 1.00), sin = (0.84, 0.01)::

    head before  [ 1   2 | 3   4 ]         pair 0 = (1, 3), pair 1 = (2, 4)
    x1'          1 * 0.54 - 3 * 0.84 = -1.98        2 * 1.00 - 4 * 0.01 = 1.96
    x2'          3 * 0.54 + 1 * 0.84 =  2.46        4 * 1.00 + 2 * 0.01 = 4.02
    head after   [ -1.98   1.96 | 2.46   4.02 ]              at position 0 nothing turns: cos = 1, sin = 0

One program per token: it loads the token's cos and sin once and turns all its heads, queries and keys. The
tile is (heads, half), both padded to powers of two. Arithmetic is in float32, rounded once at the end.

**A tile with two axes.** `tl.arange` makes a row of indices; `[:, None]` makes a column of it, as in numpy.
The sum of a column and a row is a whole matrix of addresses, and one `tl.load` fetches them all::

    head = [0, 1]   i = [0, 1, 2]   D = 8        head[:, None] * 8 + i[None, :]  =  [ 0   1   2 ]
                                                                                    [ 8   9  10 ]

**Why in place?** The unrotated heads are not needed again, and q and k are views of the fused qkv tensor: new
tensors would only take memory. In place is safe because each program loads both members of a pair before it
stores either, and no two programs share a token.

vLLM V1: `csrc/pos_encoding_kernels.cu`, with the same `cos_sin_cache`.
"""

import torch

from .common import (
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
    """The same in plain torch; returns new tensors and leaves its arguments alone.

    Shapes as in `rotary_embedding`: positions (T,), query (T, Hq, D), key (T, Hkv, D), cos_sin_cache
    (max_position, rotary_dim).
    """
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
    """Turn all heads of one token: load the two halves of every pair, store them rotated.

    Called once for the query heads and once for the key heads, because there are more query heads (SmolLM2:
    9 and 3), so the tiles differ. The compiler inlines the call.
    """
    head = tl.arange(0, LANES_HEADS)
    i = tl.arange(0, LANES_HALF)
    # One row of addresses per head. Within a row the addresses are neighbours, as `check_tensor` has checked.
    first = row_ptr + head[:, None] * stride_head + i[None, :]
    # 3 heads are padded to 4 rows, a half of 40 to 64 lanes. Without the mask row 3 would rotate
    # whatever lies behind the heads in memory: in a fused qkv tensor the keys or the values.
    mask = (head < NUM_HEADS)[:, None] & (i < HALF)[None, :]
    # float32 until the store: two products rounded to 16 bits, one minus the other, may leave few digits.
    x1 = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    x2 = tl.load(first + HALF, mask=mask, other=0.0).to(tl.float32)
    # x1 and x2 are in registers by now, so the first store may overwrite what the second still needs.
    # `tl.store` rounds to the type behind the pointer; no `.to(...)` is needed.
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
    """One program: one token, all of its query and key heads.

    LANES_* are the sizes padded to powers of two, HQ, HKV and HALF the true ones that the masks are made of.
    They are constexpr, so the compiler knows every tile's shape; strides are ordinary arguments, and a new
    value needs no new kernel (except that Triton distinguishes 1 and multiples of 16 from all others).
    """
    # 64 bits, because the token is about to be multiplied by a stride: 32 bits end at 2^31 elements.
    token = tl.program_id(0).to(tl.int64)
    # The address of the row comes out of a tensor: position 7 reads row 7 of the cosines and sines.
    position = tl.load(positions_ptr + token).to(tl.int64)
    i = tl.arange(0, LANES_HALF)
    row = cos_sin_ptr + position * cos_sin_stride + i
    # Read once, used by all heads (9 + 3 in SmolLM2). That is why a program takes a whole token.
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

    Raises:
        TypeError: a dtype is not supported, or query and key differ in theirs.
        ValueError: shapes do not fit together, rotary_dim is odd or wider than a head, or (looked up on the
            CPU only) a position lies outside of the table.
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
    # Two calls, not one: within a call all dtypes must be equal, and the table may be finer than the heads.
    check_dtypes(FLOAT_DTYPES, query=query, key=key)
    check_dtypes(FLOAT_DTYPES, cos_sin_cache=cos_sin_cache)
    check_dtypes(INDEX_DTYPES, positions=positions)
    check_devices(query=query, key=key, positions=positions, cos_sin_cache=cos_sin_cache)
    check_range("positions", positions, 0, max_position)
    # An empty grid: spare the launch.
    if num_tokens == 0:
        return query, key

    half = rotary_dim // 2
    # The brackets hold the grid, how many programs run; the parentheses what each of them gets. A tensor
    # arrives in the kernel as a pointer to its first element, without shape or strides: hence the strides.
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

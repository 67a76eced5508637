"""The activation of a Llama MLP: silu(gate) * up, in one kernel. A good first kernel to read.

The MLP computes two projections of the same input, `gate` and `up`, as one matrix product, so they arrive
side by side. The activation combines the halves::

    x    (T, 2 * I)   [ gate_0 gate_1 .. | up_0 up_1 .. ]                silu(g) = g / (1 + exp(-g))
    out  (T, I)       [ silu(gate_0) * up_0   silu(gate_1) * up_1   .. ]

**How a Triton kernel works.** Many copies of it, *programs*, run at the same time and differ in nothing but
`tl.program_id`. Each handles a *tile*: here LANES neighbouring numbers of one row. `tl.arange` makes the
tile's indices, `tl.load` and `tl.store` move it, arithmetic applies to the whole tile at once. A tile's size
is a power of two; where the row ends in the middle of a tile, a *mask* says which lanes exist::

    I = 1536, LANES = 1024:   program (t, 0) lanes 0..1023     program (t, 1) lanes 1024..1535, rest masked

`tl.constexpr` arguments are known when the kernel is compiled; each value gets a kernel of its own.

Rounding as in Hugging Face: silu in float32, rounded to the model's dtype, then the product.
vLLM V1: `csrc/activation_kernels.cu`.
"""

import torch

from .common import FLOAT_DTYPES, check_devices, check_dtypes, check_tensor, tl, triton


def silu_and_mul_reference(x: torch.Tensor) -> torch.Tensor:
    """The same in plain torch: (T, 2 * I) -> (T, I)."""
    gate, up = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


@triton.jit
def _silu_and_mul_kernel(
    out_ptr,  # (T, I)
    x_ptr,  # (T, 2 * I)
    x_stride,
    I: tl.constexpr,  # noqa: E741  (the intermediate size)
    LANES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * LANES + tl.arange(0, LANES)
    mask = i < I
    gate = tl.load(x_ptr + row * x_stride + i, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + I + i, mask=mask, other=0.0).to(tl.float32)

    # The exponent is never positive, so nothing overflows: exp(10000) would.
    e = tl.exp(-tl.abs(gate))
    silu = gate * tl.where(gate >= 0, 1.0, e) / (1.0 + e)
    silu = silu.to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * I + i, silu * up, mask=mask)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """silu of the first half of each row, times the second half.

    Args:
        x: (T, 2 * I); rows may be strided.

    Returns:
        (T, I), contiguous, in the dtype of `x`.
    """
    check_tensor("x", x, ("T", "2 * I"))
    if x.shape[1] % 2:
        raise ValueError(
            f"x must have an even number of columns, gate and up side by side, got {x.shape[1]}."
        )
    check_dtypes(FLOAT_DTYPES, x=x)
    check_devices(x=x)
    num_tokens, size = x.shape[0], x.shape[1] // 2
    out = x.new_empty(num_tokens, size)
    if out.numel() == 0:
        return out

    lanes = min(triton.next_power_of_2(size), 4096)
    _silu_and_mul_kernel[(num_tokens, triton.cdiv(size, lanes))](
        out, x, x.stride(0), I=size, LANES=lanes, num_warps=4
    )
    return out

"""RMSNorm, alone and fused with the residual addition before it.

Every Llama layer normalises its input twice::

    y_i = x_i / sqrt(mean_j x_j^2 + eps) * w_i                      one row of H numbers at a time

and each norm follows a residual addition, s = x + residual. Computed apart, s is written to memory by one
kernel and read back by the next; fused, it is written once and normalised while still in registers::

    apart    read x, residual   write s         fused    read x, residual
             read s             write y                  write s, y
             5 rows of traffic                           4 rows, and one launch instead of two

One program per row. The row is one tile: H padded to a power of two (576 -> 1024), the padding masked to 0,
which adds nothing to the sum of squares; the mean divides by H, not by the padded length.

**Whose rounding?** Hugging Face's: s is rounded to the model's dtype (it is the next residual), squares are
summed in float32 (300^2 is beyond float16's 65504), the normalised row is rounded to the dtype *before* it is
multiplied by the weight. Another order would be as good, but would differ in the last bit, and then greedy
decoding sometimes differs in a token.

vLLM V1: `csrc/layernorm_kernels.cu` (its fused kernel writes in place; this one returns new tensors, at the
same traffic, so that no caller finds its input changed).
"""

import torch

from .common import FLOAT_DTYPES, check_devices, check_dtypes, check_tensor, tl, triton


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The same in plain torch, operation by operation as in Hugging Face's `LlamaRMSNorm`."""
    total = x if residual is None else x + residual
    row = total.float()
    normed = row * torch.rsqrt(row.pow(2).mean(-1, keepdim=True) + eps)
    normed = weight * normed.to(x.dtype)
    return normed if residual is None else (normed, total)


@triton.jit
def _rms_norm_kernel(
    normed_ptr,  # (T, H)
    total_ptr,  # (T, H), or None without residual
    x_ptr,  # (T, H)
    residual_ptr,  # (T, H), or None
    weight_ptr,  # (H,)
    x_stride,
    residual_stride,
    eps,
    H: tl.constexpr,
    LANES: tl.constexpr,  # next power of two of H
):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, LANES)
    mask = i < H
    dtype: tl.constexpr = normed_ptr.dtype.element_ty

    x = tl.load(x_ptr + row * x_stride + i, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + row * residual_stride + i, mask=mask, other=0.0).to(tl.float32)
        total = (x + residual).to(dtype)
        tl.store(total_ptr + row * H + i, total, mask=mask)
        x = total.to(tl.float32)

    inverse_rms = tl.rsqrt(tl.sum(x * x, axis=0) / H + eps)
    weight = tl.load(weight_ptr + i, mask=mask, other=0.0).to(tl.float32)
    normed = (x * inverse_rms).to(dtype).to(tl.float32) * weight
    tl.store(normed_ptr + row * H + i, normed, mask=mask)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Normalise each row of `x`, or of `x + residual`, to a root mean square of 1, times `weight`.

    Args:
        x: (..., H), as a rule (T, H); rows may be strided.
        weight: (H,), same dtype.
        eps: added to the mean square, so that a row of zeros gives zeros.
        residual: like `x`.

    Returns:
        Without `residual` the normed rows. With it `(normed, x + residual)`; the second is the next residual.
        Both are new tensors: `x` and `residual` stay as they are.
    """
    check_tensor("weight", weight, ("H",))
    hidden = weight.shape[0]
    rows = x.reshape(-1, hidden) if x.shape[-1:] == weight.shape else x  # (T, H)
    check_tensor("x", rows, ("T", hidden))
    check_dtypes(FLOAT_DTYPES, x=x, weight=weight)
    check_devices(x=x, weight=weight)
    normed = x.new_empty(x.shape)
    total = None if residual is None else x.new_empty(x.shape)
    residual_rows = None
    if residual is not None:
        check_tensor("residual", residual, tuple(x.shape))
        check_dtypes(FLOAT_DTYPES, x=x, residual=residual)
        check_devices(x=x, residual=residual)
        residual_rows = residual.reshape(-1, hidden)

    if rows.shape[0] > 0:
        lanes = triton.next_power_of_2(hidden)
        _rms_norm_kernel[(rows.shape[0],)](
            normed,
            total,
            rows,
            residual_rows,
            weight,
            rows.stride(0),
            0 if residual_rows is None else residual_rows.stride(0),
            eps,
            H=hidden,
            LANES=lanes,
            num_warps=min(max(lanes // 512, 1), 8),
        )
    return normed if total is None else (normed, total)

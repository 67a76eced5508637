"""The layers of `layers.py` with one kernel of our own in the place of several operators; which ones to use.

==============  ======================  ==============================  ================================
                torch                   numba                           triton
==============  ======================  ==============================  ================================
norm            `RMSNorm`               `rms_norm_cpu`                  `kernels/rms_norm.py`
positions       `RotaryEmbedding`       `rotary_embedding_cpu`          `kernels/rotary_embedding.py`
activation      `silu_and_mul`          `silu_and_mul_cpu`              `kernels/silu_and_mul.py`
==============  ======================  ==============================  ================================

Each column goes with the attention backend of its name; any other backend (a student's, a test's) takes the
first column. The Numba kernels are in `kernels/rows_cpu.py`.

vLLM V1: `model_executor/custom_op.py` (`forward_native`, `forward_cpu`, `forward_cuda` of each layer).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minivllm.layers import Build, RMSNorm, RotaryEmbedding, Rotation, silu_and_mul


# Kernels are imported where they are used: Triton and Numba are optional, and loading them takes time.
class NumbaRMSNorm(RMSNorm):
    """`rms_norm_cpu`: the addition and the norm in one pass."""

    def __init__(self, build: Build) -> None:
        from minivllm.kernels.rows_cpu import rms_norm_cpu

        super().__init__(build)
        self._kernel, self._eps = rms_norm_cpu, np.float32(build.config.rms_norm_eps)

    def forward(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """See `RMSNorm.forward`."""
        normed, total = torch.empty_like(hidden), torch.empty_like(hidden)
        arrays = hidden.numpy(), update.numpy(), self.weight.numpy(), self._eps
        self._kernel(*arrays, normed.numpy(), total.numpy())
        return normed, total


class NumbaRotaryEmbedding(RotaryEmbedding):
    """`rotary_embedding_cpu`, which looks the angles up itself."""

    def look_up(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Nothing to do yet: positions (T,) and the whole table."""
        return positions, self.cos_sin_cache

    @staticmethod
    def rotate(heads: Tensor, *rotation: Tensor) -> Tensor:
        """Rotate query and key heads together, (T, Hq + Hkv, D); a new tensor."""
        from minivllm.kernels.rows_cpu import rotary_embedding_cpu

        # Query and key are the first heads of packed rows, which go on with the values. The kernel takes the
        # whole rows, because these lie side by side without gaps.
        num_tokens, num_heads, dim = heads.shape
        packed = heads.as_strided((num_tokens, heads.stride(0) // dim, dim), (heads.stride(0), dim, 1))
        rotated = heads.new_empty(num_tokens, num_heads, dim)
        rotary_embedding_cpu(packed.numpy(), *(tensor.numpy() for tensor in rotation), rotated.numpy())
        return rotated


def numba_silu_and_mul(gate_up: Tensor) -> Tensor:
    """As `silu_and_mul`, by `silu_and_mul_cpu`."""
    from minivllm.kernels.rows_cpu import silu_and_mul_cpu

    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    silu_and_mul_cpu(gate_up.numpy(), out.numpy())
    return out


class TritonRMSNorm(RMSNorm):
    """The addition and the norm in one kernel instead of six operators."""

    def __init__(self, build: Build) -> None:
        from minivllm.kernels.rms_norm import rms_norm

        super().__init__(build)
        self._kernel, self._eps = rms_norm, build.config.rms_norm_eps

    def forward(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """See `RMSNorm.forward`."""
        return self._kernel(update, self.weight, self._eps, residual=hidden)


class TritonRotaryEmbedding(RotaryEmbedding):
    """The rotation in one kernel, which looks the angles up itself and works in place."""

    def look_up(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Nothing to do yet: positions (T,) and the whole table."""
        return positions, self.cos_sin_cache

    @staticmethod
    def rotate(heads: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> Tensor:
        """Rotate query and key heads together, (T, Hq + Hkv, D), in place."""
        from minivllm.kernels.rotary_embedding import rotary_embedding

        rotary_embedding(positions, heads[:, :1], heads[:, 1:], cos_sin_cache)  # any cut will do
        return heads


def triton_silu_and_mul(gate_up: Tensor) -> Tensor:
    """As `silu_and_mul`, by the Triton kernel."""
    from minivllm.kernels.silu_and_mul import silu_and_mul as kernel

    return kernel(gate_up)


@dataclass(frozen=True)
class LayerKinds:
    """One column of the table above."""

    norm: type[RMSNorm]
    rotary_embedding: type[RotaryEmbedding]
    silu_and_mul: Callable[[Tensor], Tensor]


def layer_kinds(build: Build) -> LayerKinds:
    """The column which goes with the attention backend of `build`."""
    if build.attention.name == "numba":
        return LayerKinds(NumbaRMSNorm, NumbaRotaryEmbedding, numba_silu_and_mul)
    if build.attention.name == "triton":
        return LayerKinds(TritonRMSNorm, TritonRotaryEmbedding, triton_silu_and_mul)
    return LayerKinds(RMSNorm, RotaryEmbedding, silu_and_mul)

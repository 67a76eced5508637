"""The layers a Llama is made of: linear, norm, rotary embedding, gated activation.

Each layer computes what PyTorch's or Hugging Face's does, and is written here with PyTorch's operators;
`backends/layers_kernels.py` has one kernel in the place of several operators. Three of the layers are as
serving wants them::

    Linear             a decode step has few rows, so its time is the time to read the weights; on a CPU it
                       matters how they lie in memory: chosen by measurement (`backends/linears.py`)
    RMSNorm            does the addition before it, too: hidden, update -> norm of the sum, sum
    RotaryEmbedding    the angles of a step are looked up once, for all layers

vLLM V1: `model_executor/layers/` (`linear.py`, `layernorm.py`, `rotary_embedding/`, `activation.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivllm.attention import AttentionBackend
from minivllm.config import ModelConfig, RopeConfig
from minivllm.kernels.linear_cpu import LinearKernel, TorchLinear

Rotation = tuple[Tensor, Tensor]
"""What `RotaryEmbedding.look_up` finds for a step's positions and `rotate` uses in each layer."""


@dataclass(frozen=True)
class Build:
    """What every part of one model is built from."""

    config: ModelConfig
    attention: AttentionBackend
    dtype: torch.dtype
    device: torch.device

    @property
    def activations(self) -> torch.dtype:
        """Type of all that goes from layer to layer, and of the norms' weights.

        The Numba kernels compute in float32, whatever the type of weights and KV cache: a processor has few
        instructions for less, and little is read there. Elsewhere it is the model's own type.
        """
        return torch.float32 if self.attention.name == "numba" else self.dtype

    def parameter(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        """A weight to be filled by `load_weights`; this engine never trains, so it needs no gradient."""
        empty = torch.empty(*shape, dtype=dtype or self.dtype, device=self.device)
        return nn.Parameter(empty, requires_grad=False)


class Linear(nn.Module):
    """y = x W^T + b with W (out, in), as `nn.Linear`, by the product which is fastest on this machine."""

    def __init__(
        self,
        build: Build,
        in_features: int,
        out_features: int,
        bias: bool = False,
        weight: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.weight = build.parameter(out_features, in_features) if weight is None else weight
        self.bias = build.parameter(out_features) if bias else None
        self.kernel: LinearKernel = TorchLinear(self.weight, self.bias)

    def pack(self, kind: type[LinearKernel]) -> None:
        """Multiply by `kind` from now on. Its copy of the weight takes the weight's place in memory."""
        if kind is not TorchLinear:
            self.kernel = kind(self.weight, self.bias)
            # Only shape and dtype stay, on a single element.
            self.weight = nn.Parameter(
                self.weight.new_zeros(1).expand(self.weight.shape), requires_grad=False
            )

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        return self.kernel(x)


class RMSNorm(nn.Module):
    """The norm and the addition before it: total = hidden + update, total / rms(total) * weight."""

    def __init__(self, build: Build, size: int | None = None) -> None:
        super().__init__()
        self.weight = build.parameter(size or build.config.hidden_size, dtype=build.activations)
        eps = torch.tensor([build.config.rms_norm_eps], dtype=torch.float32, device=build.device)
        self.register_buffer("eps", eps, persistent=False)

    def forward(self, hidden: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """(T, H) both -> the norm of their sum, and the sum; new tensors."""
        total = hidden + update
        return self.normalize(total), total

    def normalize(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H), a new tensor; the mean of squares is taken in float32 as in Hugging Face."""
        wide = x.float()
        # The sum of squares by way of the norm, and eps + sum / size in one go: on a CPU this takes half
        # the time of F.rms_norm, which is made of six operators there.
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (..., 1)
        inverse_rms = torch.addcmul(self.eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (wide * inverse_rms).to(x.dtype).mul_(self.weight)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding: rotates each pair of a head by an angle proportional to the position.

    Pair i is (x[i], x[i + D/2]), Hugging Face's half-split layout; its angle is
    `position * inverse_frequency[i]`. With the pair's halves swapped the rotation is two products::

        x * [cos, cos] + swap(x) * [-sin, sin]
    """

    def __init__(self, build: Build) -> None:
        super().__init__()
        inverse_frequency = rope_inverse_frequencies(build.config.rope, build.config.head_dim)  # (D / 2,)
        positions = torch.arange(build.config.max_position_embeddings, dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequency)
        table = torch.cat((angles.cos(), angles.sin()), dim=-1).to(build.device)
        # (max_position_embeddings, D), float32: D / 2 cosines, then D / 2 sines.
        self.register_buffer("cos_sin_cache", table, persistent=False)

    def look_up(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Positions (T,) -> [cos, cos] and [-sin, sin], each (T, 1, D). Once per step, for all layers."""
        cos, sin = self.cos_sin_cache[positions].to(dtype).unsqueeze(1).chunk(2, dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    @staticmethod
    def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate query and key heads together, (T, Hq + Hkv, D); a new tensor."""
        swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
        return (heads * cos).addcmul_(swapped, sin)


def rope_inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair, (D / 2,) float32.

    `linear` slows every pair down by `factor`. `llama3` slows down the pairs that make fewer than
    `low_freq_factor` turns over the length the model was first trained on, leaves alone the pairs that make
    more than `high_freq_factor`, and blends in between.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inverse_frequency = 1.0 / (rope.rope_theta**exponents)
    if rope.rope_type == "linear":
        return inverse_frequency / rope.factor
    if rope.rope_type == "llama3":
        turns = rope.original_max_position_embeddings * inverse_frequency / (2 * math.pi)
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = keep.clamp(0, 1)
        return inverse_frequency * keep + inverse_frequency / rope.factor * (1 - keep)
    return inverse_frequency


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of a packed (T, 2 * inner) -> (T, inner)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)

"""The layers a Llama is made of: linear, norm, rotary embedding, gated activation.

Each is PyTorch's or Hugging Face's in meaning. They are written here for two reasons. A decode step has few
rows, so on a CPU its time is the time to read the weights, and the layout of a weight in memory matters: see
`Linear`. And on a GPU each of them is one kernel of ours instead of several operators: the `Triton...`
variants, which go with the Triton attention backend. `Build.use_triton` chooses, once, when a model is made::

                       torch operators       kernels/
    norm               RMSNorm               TritonRMSNorm           rms_norm.py
    positions          RotaryEmbedding       TritonRotaryEmbedding   rotary_embedding.py
    activation         silu_and_mul          triton_silu_and_mul     silu_and_mul.py

vLLM V1: `model_executor/layers/` (`linear.py`, `layernorm.py`, `rotary_embedding/`, `activation.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivllm.attention import AttentionBackend
from minivllm.config import ModelConfig, RopeConfig

PACKING_ROWS = 32
"""The number of rows MKL is told to expect; a packed weight is right for any number."""

Rotation = tuple[Tensor, Tensor]
"""What `RotaryEmbedding.look_up` finds for a step's positions and `rotate` uses in each layer."""


@dataclass(frozen=True)
class Build:
    """What every part of one model is built from."""

    config: ModelConfig
    attention: AttentionBackend
    dtype: torch.dtype
    device: torch.device

    def parameter(self, *shape: int) -> nn.Parameter:
        """A weight to be filled by `load_weights`; this engine never trains, so it needs no gradient."""
        return nn.Parameter(torch.empty(*shape, dtype=self.dtype, device=self.device), requires_grad=False)

    @property
    def use_triton(self) -> bool:
        """Whether norm, rotary and activation are Triton kernels too: they go with the attention backend."""
        return self.attention.name == "triton"


class Linear(nn.Module):
    """y = x W^T + b with W (out, in), as `nn.Linear`; `pack` makes it faster where MKL is at hand.

    With few rows a product reads its weight once and is done, so it matters in which order the weight
    lies in memory. All 120 projections of SmolLM2-135M, float32, ms on two cores of a Cascade Lake Xeon:

    ========  ========  ==================  ================  ==========
    rows (T)  F.linear  mm(x, W^T copied)   mm(W, x^T)^T      MKL packed
    1         25        21                  25                23
    8         67        40                  36                26
    16        105       47                  36                31
    32        121       69                  51                43
    64        117       111                 122               85
    ========  ========  ==================  ================  ==========
    """

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
        self._packed: Tensor | None = None

    @property
    def is_packed(self) -> bool:
        """Whether `pack` has replaced the weight."""
        return self._packed is not None

    def pack(self) -> None:
        """Replace the weight by a copy in MKL's own order, if this is float32 on an x86 CPU.

        The operators are the ones torch.compile uses for frozen weights, without its need for a compiler.
        They are private to PyTorch, so a result is compared before the weight is let go; what does not
        exist or does not agree is left as it is. The packed copy takes the weight's place in memory.
        """
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32:
            return
        if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")):
            return
        self._packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, PACKING_ROWS)
        probe = torch.linspace(-1, 1, 3 * self.weight.shape[1]).view(3, -1)
        if not torch.allclose(self(probe), F.linear(probe, self.weight, self.bias), rtol=1e-3, atol=1e-3):
            self._packed = None
            return
        # What stays is the shape, on a single element: the operator asks for it.
        self.weight = nn.Parameter(torch.zeros(1).expand(self.weight.shape), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        if self._packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkl._mkl_linear(x, self._packed, self.weight, self.bias, x.shape[0])


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean of squares taken in float32 as Hugging Face does."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.weight = build.parameter(build.config.hidden_size)
        eps = torch.tensor([build.config.rms_norm_eps], dtype=torch.float32, device=build.device)
        self.register_buffer("eps", eps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(T, hidden) -> (T, hidden), a new tensor."""
        wide = x.float()
        # The sum of squares by way of the norm, and eps + sum / size in one go: on a CPU this takes half
        # the time of F.rms_norm, which is made of six operators there.
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (T, 1)
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
        """Positions (T,) -> [cos, cos] and [-sin, sin], each (T, 1, D). Once a step, for all layers."""
        cos, sin = self.cos_sin_cache[positions].to(dtype).unsqueeze(1).chunk(2, dim=-1)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    @staticmethod
    def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate query and key heads together, (T, Hq + Hkv, D); a new tensor."""
        swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
        return (heads * cos).addcmul_(swapped, sin)


def rope_inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair, (D / 2,) float32.

    `linear` slows every pair down by `factor`. `llama3` slows down only those that had not completed
    `low_freq_factor` turns over the length the model was first trained on, leaves those alone that had
    completed `high_freq_factor`, and blends in between.
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


class TritonRMSNorm(RMSNorm):
    """The same in one kernel instead of five operators. The kernels are imported only where they are used."""

    def __init__(self, build: Build) -> None:
        from minivllm.kernels.rms_norm import rms_norm

        super().__init__(build)
        self._kernel, self._eps = rms_norm, build.config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """(T, hidden) -> (T, hidden), a new tensor."""
        return self._kernel(x, self.weight, self._eps)


class TritonRotaryEmbedding(RotaryEmbedding):
    """The same in one kernel, which looks the angles up itself and rotates in place."""

    def look_up(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Nothing to do yet: positions (T,) and the whole table."""
        return positions, self.cos_sin_cache

    @staticmethod
    def rotate(heads: Tensor, positions: Tensor, cos_sin_cache: Tensor) -> Tensor:
        """Rotate query and key heads together, (T, Hq + Hkv, D), in place."""
        from minivllm.kernels.rotary_embedding import rotary_embedding

        rotary_embedding(positions, heads[:, :1], heads[:, 1:], cos_sin_cache)  # any cut will do
        return heads


def triton_silu_and_mul() -> Callable[[Tensor], Tensor]:
    """The kernel that does what `silu_and_mul` does."""
    from minivllm.kernels.silu_and_mul import silu_and_mul

    return silu_and_mul

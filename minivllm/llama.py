"""The Llama model, reading its past from the paged KV cache.

It is the Llama of the paper and of Hugging Face, with three differences that serving asks for. The batch
is one row of T tokens with no padding: where a sequence begins is known only to the attention backend.
Positions are an argument, because a row's index says nothing about its place in its sequence. And Q, K, V
(and gate, up) are one matrix product each, because a decode step reads every weight for a few rows, so
its time is the number of passes over memory::

    input_ids (T,) -> embed -> 30 x [ hidden += attention(norm(hidden)); hidden += mlp(norm(hidden)) ] -> norm

For the same reason the layout of a weight in memory matters on a CPU: see `Linear`.

vLLM V1: `model_executor/models/llama.py`; Hugging Face: `models/llama/modeling_llama.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivllm.attention import AttentionBackend, AttentionMetadata
from minivllm.config import ModelConfig, RopeConfig
from minivllm.kv_cache import KVCache

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


class LlamaAttention(nn.Module):
    """Grouped-query attention: project, rotate, attend over the KV cache, project back."""

    def __init__(self, build: Build, layer: int) -> None:
        super().__init__()
        config = build.config
        self.layer, self.attention, self.scale = layer, build.attention, config.head_dim**-0.5
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.rotate = (TritonRotaryEmbedding if build.use_triton else RotaryEmbedding).rotate
        qkv_size = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        self.qkv_proj = Linear(build, config.hidden_size, qkv_size, config.attention_bias)
        self.o_proj = Linear(build, self.num_heads * self.head_dim, config.hidden_size, config.attention_bias)

    def forward(
        self, hidden: Tensor, rotation: Rotation, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """(T, hidden) -> (T, hidden)."""
        heads = self.qkv_proj(hidden).view(hidden.shape[0], -1, self.head_dim)  # (T, Hq + 2 * Hkv, D)
        query_key, value = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        query_key = self.rotate(query_key, *rotation)
        query, key = query_key.split((self.num_heads, self.num_kv_heads), dim=1)
        attended = self.attention.forward(query, key, value, kv_cache, self.layer, metadata, self.scale)
        return self.o_proj(attended.flatten(1))


class LlamaMLP(nn.Module):
    """The gated feed-forward network: down(silu(gate(x)) * up(x))."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        hidden, inner, bias = build.config.hidden_size, build.config.intermediate_size, build.config.mlp_bias
        self.gate_up_proj = Linear(build, hidden, 2 * inner, bias)
        self.down_proj = Linear(build, inner, hidden, bias)
        self.silu_and_mul = triton_silu_and_mul() if build.use_triton else silu_and_mul

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, hidden) -> (T, hidden)."""
        return self.down_proj(self.silu_and_mul(self.gate_up_proj(hidden)))


class LlamaDecoderLayer(nn.Module):
    """One block of the network: attention and MLP, each behind a norm and beside a residual path."""

    def __init__(self, build: Build, layer: int) -> None:
        super().__init__()
        norm = TritonRMSNorm if build.use_triton else RMSNorm
        self.self_attn, self.mlp = LlamaAttention(build, layer), LlamaMLP(build)
        self.input_layernorm, self.post_attention_layernorm = norm(build), norm(build)

    def forward(
        self, hidden: Tensor, rotation: Rotation, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """(T, hidden) -> (T, hidden), the same tensor: the residual path is added to in place."""
        hidden += self.self_attn(self.input_layernorm(hidden), rotation, kv_cache, metadata)
        hidden += self.mlp(self.post_attention_layernorm(hidden))
        return hidden


class LlamaModel(nn.Module):
    """Embedding, the decoder layers, the final norm."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.embed_tokens = build.parameter(build.config.vocab_size, build.config.hidden_size)
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(build, layer) for layer in range(build.config.num_hidden_layers)
        )
        self.norm = (TritonRMSNorm if build.use_triton else RMSNorm)(build)
        self.rotary_emb = (TritonRotaryEmbedding if build.use_triton else RotaryEmbedding)(build)

    def forward(
        self, input_ids: Tensor, positions: Tensor, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """(T,) token ids and positions -> (T, hidden)."""
        hidden = F.embedding(input_ids, self.embed_tokens)
        rotation = self.rotary_emb.look_up(positions, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, rotation, kv_cache, metadata)
        return self.norm(hidden)


class LlamaForCausalLM(nn.Module):
    """The whole model: token ids in, logits out. Its weights are empty until `load_weights`."""

    def __init__(
        self,
        config: ModelConfig,
        attention: AttentionBackend,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.config, self.attention, self._has_weights = config, attention, False
        build = Build(config, attention, dtype, torch.device(device))
        self.model = LlamaModel(build)
        shared = self.model.embed_tokens if config.tie_word_embeddings else None
        self.lm_head = Linear(build, config.hidden_size, config.vocab_size, weight=shared)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights held. A packed head of a tied model is a second copy of the embedding."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def forward(
        self, input_ids: Tensor, positions: Tensor, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """Run T tokens through the network, writing their K and V into the cache.

        Args:
            input_ids: (T,) the new tokens of all sequences, packed.
            positions: (T,) int64, each token's place in its own sequence.
            kv_cache: changed in place, at `metadata.slot_mapping`.
            metadata: if its `plan` is None, `prepare` is called here. (Whoever captures CUDA graphs
                calls it before, outside of the graph.)

        Returns:
            (T, hidden) after the final norm; `compute_logits` takes the rows that are sampled from.
        """
        assert input_ids.shape == positions.shape == metadata.slot_mapping.shape
        if metadata.plan is None:
            metadata = self.attention.prepare(metadata)
        return self.model(input_ids, positions, kv_cache, metadata)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(N, hidden) -> (N, V) float32: only for rows that are sampled from, this is a large product."""
        return self.lm_head(hidden).float()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy in weights under their Hugging Face names, in any order, one at a time. Only once.

        Raises:
            ValueError: a weight is missing, unknown, given twice or has the wrong shape. Weights that
                came before it are loaded, so the model is not to be used then.
        """
        if self._has_weights:
            raise ValueError("this model has its weights already; make a new LlamaForCausalLM for others.")
        missing = self._hugging_face_views()
        unexpected = []
        tied_head = "lm_head.weight" if self.config.tie_word_embeddings else None
        for name, weight in weights:
            if name == tied_head or name.endswith("rotary_emb.inv_freq"):
                continue  # the embedding again; derived from the config
            if name not in missing:
                unexpected.append(name)
                continue
            view = missing.pop(name)
            if view.shape != weight.shape:
                raise ValueError(
                    f"weight {name} has shape {tuple(weight.shape)}, but the config asks for "
                    f"{tuple(view.shape)}: do config and weights belong to the same model?"
                )
            view.copy_(weight)
        if missing or unexpected:
            raise ValueError(
                f"the weights do not fit the config: missing {sorted(missing) or 'none'}, "
                f"unexpected {sorted(unexpected) or 'none'}."
            )
        self._has_weights = True
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()

    def _hugging_face_views(self) -> dict[str, Tensor]:
        """Hugging Face's name of each weight -> a view of ours, in Hugging Face's (out, in) layout."""
        config, model = self.config, self.model
        views: dict[str, Tensor] = {"model.embed_tokens.weight": model.embed_tokens}
        views["model.norm.weight"] = model.norm.weight

        def add(prefix: str, linear: Linear, parts: dict[str, int]) -> None:
            """Enter the parts of a fused projection: consecutive rows of (out, in)."""
            for part, weight in zip(parts, linear.weight.split(list(parts.values())), strict=True):
                views[f"{prefix}{part}.weight"] = weight
            if linear.bias is not None:
                for part, bias in zip(parts, linear.bias.split(list(parts.values())), strict=True):
                    views[f"{prefix}{part}.bias"] = bias

        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size
        for index, layer in enumerate(model.layers):
            prefix = f"model.layers.{index}."
            qkv = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
            add(f"{prefix}self_attn.", layer.self_attn.qkv_proj, qkv)
            add(f"{prefix}self_attn.", layer.self_attn.o_proj, {"o_proj": hidden})
            add(f"{prefix}mlp.", layer.mlp.gate_up_proj, {"gate_proj": inner, "up_proj": inner})
            add(f"{prefix}mlp.", layer.mlp.down_proj, {"down_proj": hidden})
            for norm in ("input_layernorm", "post_attention_layernorm"):
                views[f"{prefix}{norm}.weight"] = getattr(layer, norm).weight
        if not config.tie_word_embeddings:
            add("", self.lm_head, {"lm_head": config.vocab_size})
        return views


class TritonRMSNorm(RMSNorm):
    """The same in one kernel instead of five operators. The kernels are imported only where they are used."""

    def __init__(self, build: Build) -> None:
        from kernels.rms_norm import rms_norm

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
        from kernels.rotary_embedding import rotary_embedding

        rotary_embedding(positions, heads[:, :1], heads[:, 1:], cos_sin_cache)  # any cut will do
        return heads


def triton_silu_and_mul() -> Callable[[Tensor], Tensor]:
    """The kernel that does what `silu_and_mul` does."""
    from kernels.silu_and_mul import silu_and_mul

    return silu_and_mul

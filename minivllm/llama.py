"""The Llama model, reading its past from the paged KV cache.

It is the Llama of the paper and of Hugging Face, with three differences that serving asks for. The batch
is one row of T tokens with no padding: where a sequence begins is known only to the attention backend.
Positions are an argument, because a token's index in the batch does not tell its place in its sequence. And
Q, K, V are one matrix product, as are gate and up: a decode step reads every weight for a few rows, so fewer
and larger passes over memory save time::

    input_ids (T,) -> embed -> 30 x [ hidden += attention(norm(hidden)); hidden += mlp(norm(hidden)) ] -> norm

One decoder layer, SmolLM2-135M (hidden 576, 9 query and 3 KV heads of 64, inner 1,536), T tokens::

    hidden (T, 576) --+--> norm -> qkv_proj (T, 960) = [Q 9 x 64 | K 3 x 64 | V 3 x 64]
                      |              rotate Q, K by position;  K, V -> KV cache;  attend -> (T, 9 x 64)
                      +<---------- o_proj (T, 576)
                      +--> norm -> gate_up_proj (T, 3072) -> silu(gate) * up (T, 1536)
                      +<---------- down_proj (T, 576)

The parts of a layer are in `layers.py`; each addition (+) is done by the norm after it.

Paper: section 2.1 (what a Transformer decoder computes).
vLLM V1: `model_executor/models/llama.py`; Hugging Face: `models/llama/modeling_llama.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivllm.attention import AttentionBackend, AttentionMetadata
from minivllm.backends.layers_kernels import layer_kinds
from minivllm.backends.linears import pack_linears
from minivllm.config import ModelConfig, few
from minivllm.kv_cache import KVCache
from minivllm.layers import Build, Linear, RMSNorm, Rotation


class LlamaAttention(nn.Module):
    """Grouped-query attention: project, rotate, attend over the KV cache, project back.

    The projections treat all tokens alike. Only `attention.forward` knows of sequences, and only it reads and
    writes the KV cache.
    """

    def __init__(self, build: Build, layer: int) -> None:
        super().__init__()
        config = build.config
        self.layer, self.attention, self.scale = layer, build.attention, config.head_dim**-0.5
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.rotate = layer_kinds(build).rotary_embedding.rotate
        qkv_size = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        qkv_bias = config.attention_bias or config.qkv_bias
        self.qkv_proj = Linear(build, config.hidden_size, qkv_size, qkv_bias)
        self.o_proj = Linear(build, self.num_heads * self.head_dim, config.hidden_size, config.attention_bias)

    def forward(
        self, hidden: Tensor, rotation: Rotation, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """(T, hidden) -> (T, hidden)."""
        # One product for Q, K and V: their rows of the weight lie one after the other, and so do the heads of
        # the result. Q and K are split apart only after the rotation, which takes both in one go.
        heads = self.qkv_proj(hidden).view(hidden.shape[0], -1, self.head_dim)  # (T, Hq + 2 * Hkv, D)
        query_key, value = heads.split((self.num_heads + self.num_kv_heads, self.num_kv_heads), dim=1)
        # Keys are cached rotated. A key's position never changes, so this is done once for all later steps.
        query_key = self.rotate(self.normalize_heads(query_key), *rotation)
        query, key = query_key.split((self.num_heads, self.num_kv_heads), dim=1)
        attended = self.attention.forward(query, key, value, kv_cache, self.layer, metadata, self.scale)
        return self.o_proj(attended.flatten(1))

    def normalize_heads(self, query_key: Tensor) -> Tensor:
        """What happens to Q and K, (T, Hq + Hkv, D), before they are rotated: nothing in a Llama."""
        return query_key


class LlamaMLP(nn.Module):
    """The gated feed-forward network: down(silu(gate(x)) * up(x)).

    Three quarters of a SmolLM2 layer's weights are here, and no token sees another one.
    """

    def __init__(self, build: Build) -> None:
        super().__init__()
        hidden, inner, bias = build.config.hidden_size, build.config.intermediate_size, build.config.mlp_bias
        self.gate_up_proj = Linear(build, hidden, 2 * inner, bias)
        self.down_proj = Linear(build, inner, hidden, bias)
        self.silu_and_mul = layer_kinds(build).silu_and_mul

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, hidden) -> (T, hidden)."""
        return self.down_proj(self.silu_and_mul(self.gate_up_proj(hidden)))


class LlamaDecoderLayer(nn.Module):
    """One block of the network: attention and MLP, each behind a norm and beside a residual path."""

    def __init__(self, build: Build, layer: int, attention: type[LlamaAttention]) -> None:
        super().__init__()
        norm = layer_kinds(build).norm
        self.self_attn, self.mlp = attention(build, layer), LlamaMLP(build)
        self.input_layernorm, self.post_attention_layernorm = norm(build), norm(build)

    def forward(
        self,
        hidden: Tensor,
        update: Tensor,
        rotation: Rotation,
        kv_cache: KVCache,
        metadata: AttentionMetadata,
    ) -> tuple[Tensor, Tensor]:
        """(T, hidden) twice, in and out: the residual path, and what is to be added to that path next.

        The layer's last update is left to the next norm, because a norm and the addition before it take one
        pass over the rows.
        """
        normed, hidden = self.input_layernorm(hidden, update)
        update = self.self_attn(normed, rotation, kv_cache, metadata)
        normed, hidden = self.post_attention_layernorm(hidden, update)
        return hidden, self.mlp(normed)


class LlamaModel(nn.Module):
    """Embedding, the decoder layers, the final norm."""

    def __init__(self, build: Build, attention: type[LlamaAttention]) -> None:
        super().__init__()
        self.activations = build.activations
        self.embed_tokens = build.parameter(build.config.vocab_size, build.config.hidden_size)
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(build, layer, attention) for layer in range(build.config.num_hidden_layers)
        )
        self.norm = layer_kinds(build).norm(build)
        self.rotary_emb = layer_kinds(build).rotary_embedding(build)

    def embed(self, input_ids: Tensor) -> Tensor:
        """(T,) -> (T, hidden)."""
        # A parameter instead of nn.Embedding, so that a tied head can use the very same tensor.
        return F.embedding(input_ids, self.embed_tokens).to(self.activations)

    def forward(
        self, input_ids: Tensor, positions: Tensor, kv_cache: KVCache, metadata: AttentionMetadata
    ) -> Tensor:
        """(T,) token ids and positions -> (T, hidden)."""
        hidden = self.embed(input_ids)
        # The angles depend on positions alone: looked up once, used in every layer.
        rotation = self.rotary_emb.look_up(positions, hidden.dtype)
        update = torch.zeros_like(hidden)  # nothing is to be added to the embedding
        for layer in self.layers:
            hidden, update = layer(hidden, update, rotation, kv_cache, metadata)
        normed, _ = self.norm(hidden, update)
        return normed


class LlamaForCausalLM(nn.Module):
    """The whole model: token ids in, logits out. Its weights are empty until `load_weights`.

    `attention_layer` is the part in which its relatives differ (`qwen3.py`).
    """

    attention_layer: ClassVar[type[LlamaAttention]] = LlamaAttention

    def __init__(
        self,
        config: ModelConfig,
        attention: AttentionBackend,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.config, self.attention = config, attention
        # The product which all `Linear` layers use (see `pack_linears`); None until there are weights.
        self.linear_kernel: str | None = None
        build = Build(config, attention, dtype, torch.device(device))
        self.model = LlamaModel(build, self.attention_layer)
        # Tied: the table that turns ids into vectors also turns vectors into scores. 28 million of SmolLM2's
        # 135 million weights are in it.
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
            metadata: if its `plan` is None, `prepare` is called here. (Where CUDA graphs are
                captured, `prepare` is called before, outside of the graph.)

        Returns:
            (T, hidden) after the final norm; `compute_logits` takes the rows that are sampled from.
        """
        # A token is one row, whether its prompt is cut into chunks or not; only the metadata differs.
        assert input_ids.shape == positions.shape == metadata.slot_mapping.shape
        if metadata.plan is None:
            metadata = self.attention.prepare(metadata)
        return self.model(input_ids, positions, kv_cache, metadata)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(N, hidden) -> (N, V) float32; only for rows that are sampled from, as the product is large."""
        return self.lm_head(hidden).float()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], kernel_choices: Path | None = None) -> None:
        """Copy in weights under their Hugging Face names, in any order, one at a time. Only once.

        Args:
            weights: (name, tensor).
            kernel_choices: the file that remembers from start to start which product is the fastest on this
                machine. None: measured each time.

        Raises:
            ValueError: a weight is missing, unknown, given twice or has the wrong shape. Do not use the
                model then: the weights before that one are in it.
        """
        if self.linear_kernel is not None:
            raise ValueError("this model has its weights already; make a new LlamaForCausalLM for others.")
        # A weight that has arrived is taken out of `missing`, so one that comes twice is unexpected.
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
                f"the weights do not fit the config: missing {few(missing)}; unexpected {few(unexpected)}."
            )
        self.linear_kernel = pack_linears(self, kernel_choices)

    def _hugging_face_views(self) -> dict[str, Tensor]:
        """Hugging Face's name of each weight -> a view of ours, in Hugging Face's (out, in) layout.

        Example: `...self_attn.k_proj.weight` is rows 576 to 767 of SmolLM2's `qkv_proj.weight`, (960, 576).
        Copying into the view fills the fused weight, and nothing has to be concatenated.
        """
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
            for name, module in layer.named_modules():  # all norms bear Hugging Face's names
                if isinstance(module, RMSNorm):
                    views[f"{prefix}{name}.weight"] = module.weight
        if not config.tie_word_embeddings:
            add("", self.lm_head, {"lm_head": config.vocab_size})
        return views

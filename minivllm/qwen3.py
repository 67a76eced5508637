"""Qwen3: a Llama whose queries and keys are normalised, head by head, before they are rotated.

This file is also the price of a new model: what is the same is imported, what differs is written down
(`docs/adding_a_model.md` has the steps). Of a layer's six parts one differs, and in it a single line::

    hidden (T, H) --+--> norm -> qkv_proj = [Q Hq x D | K Hkv x D | V Hkv x D]
                    |              Qwen3: each head of Q and of K is divided by its own length ("QK-norm")
                    |              rotate Q, K by position;  K, V -> KV cache;  attend
                    +<---------- o_proj             the rest is Llama's

Why a model does this: a score is the product of a query and a key, and nothing in a Llama bounds their
lengths. In training some grow until softmax sees one token only. After the norm a head is as long as its
learned weight says. Example, D = 2, weight [1, 1]: the heads [3, 4] and [300, 400] both become [0.85, 1.13],
of length sqrt(2).

The norm comes first and the rotation second: a rotation keeps lengths, but the norm's weight scales the D
numbers of a head one by one, which does not commute with turning pairs of them. Keys are cached after both.

Two more differences are sizes, which `config.json` says: no bias, and a `head_dim` that is not
hidden_size / num_attention_heads (Qwen3-0.6B: 16 heads of 128, hidden 1,024).

Qwen3 technical report, arXiv 2505.09388, section 2. vLLM V1: `model_executor/models/qwen3.py`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from minivllm.layers import Build, RMSNorm
from minivllm.llama import LlamaAttention, LlamaForCausalLM


class Qwen3Attention(LlamaAttention):
    """Llama's attention with one norm for all query heads and one for all key heads of a layer."""

    def __init__(self, build: Build, layer: int) -> None:
        super().__init__(build, layer)
        self.q_norm, self.k_norm = (RMSNorm(build, self.head_dim) for _ in range(2))

    def normalize_heads(self, query_key: Tensor) -> Tensor:
        """Q and K, (T, Hq + Hkv, D) -> the same shape, a new tensor."""
        query, key = query_key.split((self.num_heads, self.num_kv_heads), dim=1)
        return torch.cat((self.q_norm.normalize(query), self.k_norm.normalize(key)), dim=1)


class Qwen3ForCausalLM(LlamaForCausalLM):
    """Llama's frame around layers whose attention is Qwen3's."""

    attention_layer: ClassVar[type[LlamaAttention]] = Qwen3Attention

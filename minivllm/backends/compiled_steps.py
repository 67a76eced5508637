"""Decode steps on a CPU in one compiled call: what CUDA graphs are for a GPU.

A step of a small model is made of some 300 calls, and between two of them Python takes as long as a norm
does. `kernels/decode_step_cpu.py` has all layers of a step in one compiled function. This class gives that
function its arguments: the weights of all layers, one array for each kind; the memory for what lies between
two layers; and, step by step, what the attention backend has prepared::

    call by call   embedding | norm qkv rotate write attend o norm gate_up silu down | x 30 | norm | head
    compiled       embedding | one call for all layers                                      | norm | head

Prefills are not compiled: with hundreds of rows a kernel runs long enough for its call not to matter.

vLLM V1: `vllm/compilation/` (torch.compile; `enforce_eager` does without, as here).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from minivllm.attention import AttentionMetadata
from minivllm.backends.attention_kernels import FEW_QUERIES, NumbaAttention, NumbaPlan, as_array
from minivllm.kernels.linear_cpu import PanelLinear, stack_panels
from minivllm.kv_cache import KVCache
from minivllm.layers import Linear
from minivllm.llama import LlamaAttention, LlamaForCausalLM
from minivllm.model import Model

if TYPE_CHECKING:
    from minivllm.kernels.decode_step_cpu import Batch, Scratch


def can_compile(model: Model, enforce_eager: bool) -> bool:
    """Whether the compiled step computes what this model does: a plain Llama, its products by panels.

    Its relatives, and models with a bias, take the calls one by one.
    """
    if enforce_eager or not isinstance(model, LlamaForCausalLM):
        return False
    is_plain = model.attention_layer is LlamaAttention and not any(
        module.bias is not None for module in model.model.modules() if isinstance(module, Linear)
    )
    return (
        is_plain and isinstance(model.attention, NumbaAttention) and model.linear_kernel == PanelLinear.name
    )


class CompiledSteps:
    """The compiled decode step of one model, whose weights move into arrays which the layers then share.

    Args:
        model: one that `can_compile`.
        kv_cache: used in each step; it must not be replaced.
        max_num_rows: the most rows of a step; memory for them is held.
    """

    def __init__(self, model: LlamaForCausalLM, kv_cache: KVCache, max_num_rows: int) -> None:
        # Imported here and not above: it needs Numba.
        from minivllm.kernels import decode_step_cpu as kernel

        self.model, self.num_runs = model, 0
        self._kernel, self._max_num_rows = kernel, max_num_rows
        layers, config = list(model.model.layers), model.config
        norms = [(layer.input_layernorm.weight, layer.post_attention_layernorm.weight) for layer in layers]
        self._weights = kernel.Weights(
            norms=torch.stack([torch.stack(pair) for pair in norms]).numpy(),
            qkv=stack_panels([layer.self_attn.qkv_proj.kernel for layer in layers]),
            o=stack_panels([layer.self_attn.o_proj.kernel for layer in layers]),
            gate_up=stack_panels([layer.mlp.gate_up_proj.kernel for layer in layers]),
            down=stack_panels([layer.mlp.down_proj.kernel for layer in layers]),
            cos_sin=model.model.rotary_emb.cos_sin_cache.numpy(),
            eps=np.float32(config.rms_norm_eps),
        )
        self._cache = as_array(kv_cache.blocks)
        heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        sizes = config.hidden_size, heads, config.intermediate_size, self._weights.qkv.dtype.name
        self._scratch = kernel.Scratch.make(max_num_rows, *sizes)

    def fits(self, metadata: AttentionMetadata) -> bool:
        """Whether this is a step of few rows, with few queries for each sequence."""
        return metadata.max_query_len <= FEW_QUERIES and len(metadata.slot_mapping) <= self._max_num_rows

    def run(self, input_ids: Tensor, positions: Tensor, metadata: AttentionMetadata) -> Tensor:
        """The forward pass of a step that `fits`.

        Args:
            input_ids: (T,).
            positions: (T,).
            metadata: of this step.

        Returns:
            (T, hidden), a new tensor.
        """
        model, attention = self.model, self.model.attention
        plan = attention.prepare(metadata).plan
        assert isinstance(plan, NumbaPlan) and not plan.prefills
        batch = self._kernel.Batch(
            positions.numpy(), metadata.slot_mapping.numpy(), plan.tokens, plan.block_tables, plan.seq_lens
        )
        scratch = self._scratch.first(len(input_ids))
        hidden, update = torch.from_numpy(scratch.hidden), torch.from_numpy(scratch.update)
        hidden.copy_(model.model.embed(input_ids))
        update.zero_()
        self.run_layers(batch, scratch)
        self.num_runs += 1
        return model.model.norm(hidden, update)[0]

    def run_layers(self, batch: Batch, scratch: Scratch) -> None:
        """The compiled call, alone: a profile looks in here."""
        arguments = self._weights, self._cache, batch, scratch
        self._kernel.decode_layers_cpu(self.model.attention.decode_kernel, *arguments)

"""Small builders shared by the tests of the tensor wing: batches as plain lists, made into tensors here."""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm.attention import AttentionMetadata
from minivllm.config import ModelConfig

POISON = 1e4
"""Put into unused slots: finite, because the torch path multiplies masked values by a weight of 0."""


def model_config(heads: int = 6, kv_heads: int = 2, head_dim: int = 16, **overrides: object) -> ModelConfig:
    """A tiny Llama's config."""
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    return ModelConfig(
        **{**sizes, **overrides},
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )


def make_metadata(
    tables: list[list[int]], seq_lens: list[int], query_lens: list[int], block_size: int
) -> AttentionMetadata:
    """The metadata of one step; the queries of each sequence are its last tokens."""
    slots = []
    for table, seq_len, query_len in zip(tables, seq_lens, query_lens, strict=True):
        for position in range(seq_len - query_len, seq_len):
            slots.append(table[position // block_size] * block_size + position % block_size)
    width = max(len(table) for table in tables)
    padded = [table + [0] * (width - len(table)) for table in tables]
    starts = [0]
    for query_len in query_lens:
        starts.append(starts[-1] + query_len)
    return AttentionMetadata(
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        block_tables=torch.tensor(padded, dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
    )


def poison_(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a tensor with +-POISON at random, in place."""
    signs = torch.randint(0, 2, tensor.shape, generator=generator).mul(2).sub(1)
    return tensor.copy_(signs * POISON)

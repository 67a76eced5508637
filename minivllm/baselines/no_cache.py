"""Greedy decoding without a KV cache: run the whole text through the model for every new token.

The slowest way to generate, and the one with the least to go wrong: no cache, no blocks, no batch, nothing to
keep in step. Every engine here has to give the same greedy text, with any scheduler and memory manager::

    tokens computed for a prompt of 6 and 4 new tokens:   6 + 7 + 8 + 9 = 30      with a KV cache:  6 + 3 = 9

`next_logits` is any function from all tokens so far to the logits of the next one, so that the loop runs on
Hugging Face's model (`hugging_face_logits`, an oracle that we did not write) and on ours (`llama_logits`).

Paper: section 2.2 (why the KV cache exists). vLLM V1 has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch

from minivllm.attention import AttentionMetadata
from minivllm.block_table import cdiv
from minivllm.kv_cache import KVCache
from minivllm.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NextLogits = Callable[[list[int]], torch.Tensor]  # all tokens so far -> (V,)


def greedy_without_cache(
    next_logits: NextLogits,
    prompt_token_ids: list[int],
    max_tokens: int,
    stop_token_ids: Collection[int] = (),
) -> list[int]:
    """The likeliest token, again and again; a stop token is the last one returned."""
    token_ids = list(prompt_token_ids)
    for _ in range(max_tokens):
        token_ids.append(int(next_logits(token_ids).argmax()))
        if token_ids[-1] in stop_token_ids:
            break
    return token_ids[len(prompt_token_ids) :]


def hugging_face_logits(model: PreTrainedModel) -> NextLogits:
    """`next_logits` of a Hugging Face model.

    It runs without its cache too: in an oracle a cache is one more thing that could be wrong.
    """

    @torch.inference_mode()
    def next_logits(token_ids: list[int]) -> torch.Tensor:
        input_ids = torch.tensor([token_ids], device=model.device)  # (1, T)
        return model(input_ids, use_cache=False).logits[0, -1]

    return next_logits


def llama_logits(model: Model, block_size: int = 16) -> NextLogits:
    """`next_logits` of our own model: a prefill of everything into blocks that are then thrown away."""
    weight = next(model.parameters())

    @torch.inference_mode()
    def next_logits(token_ids: list[int]) -> torch.Tensor:
        num_tokens, num_blocks = len(token_ids), cdiv(len(token_ids), block_size)
        positions = torch.arange(num_tokens, device=weight.device)  # (T,)
        # Blocks 0, 1, 2, ... in order, so the slot of a position is its own number: the one case in which the
        # positions can be passed as the slot_mapping.
        metadata = AttentionMetadata(
            slot_mapping=positions,
            block_tables=torch.arange(num_blocks, dtype=torch.int32, device=weight.device)[None],  # (1, B)
            seq_lens=torch.tensor([num_tokens], dtype=torch.int32, device=weight.device),
            query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32, device=weight.device),
            max_query_len=num_tokens,
            max_seq_len=num_tokens,
        )
        kv_cache = KVCache(model.config, num_blocks, block_size, weight.dtype, weight.device)
        input_ids = torch.tensor(token_ids, device=weight.device)
        hidden = model(input_ids, positions, kv_cache, metadata)  # (T, hidden)
        return model.compute_logits(hidden[-1:])[0]

    return next_logits

"""A real Llama behind the project's interface: lists in, tensors inside, one token id per row out.

The KV cache of minivllm has blocks; here a block is one slot, so a row's list of slots is its block table,
and any engine fits, paged or not::

    Row([t6], slots=[28, 29, 30, 31, 8, 9, 10])  ->  block_tables [[28, 29, 30, 31, 8, 9, 10]]   seq_lens [7]
                                                     positions [6]  slot_mapping [10]  query_start_loc [0, 1]

The same five tensors with blocks of 16 are in `model_runner.py`.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import torch

from minivllm.attention import AttentionMetadata
from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.course.project.model import Row, check_rows
from minivllm.kv_cache import KVCache
from minivllm.weights.hf_config import load_model_config
from minivllm.weights.loader import load_model


class LlamaModel:
    """A `Model`: weights from a folder, float32 on the CPU, greedy.

    Args:
        folder: in Hugging Face format, see `resolve_model`.
        num_slots: the size of its memory.
        attention_backend: "torch", "numba" or "auto".
    """

    def __init__(self, folder: Path, num_slots: int, attention_backend: str = "torch") -> None:
        config = load_model_config(folder)
        attention = make_attention_backend(attention_backend, config, 1, torch.float32, "cpu")
        self.num_slots = num_slots
        self._model = load_model(folder, attention, torch.float32, "cpu")
        self._kv_cache = KVCache(config, num_slots, 1, torch.float32, "cpu")

    @torch.inference_mode()
    def forward(self, rows: list[Row]) -> list[int]:
        """See `Model.forward`. A slot into which nothing was written reads as zeros, without a word."""
        check_rows(rows, self.num_slots)
        counts, lengths = [len(row.token_ids) for row in rows], [len(row.slots) for row in rows]
        token_ids = [token_id for row in rows for token_id in row.token_ids]
        positions = [position for row in rows for position in range(row.start, len(row.slots))]
        block_tables = [[*row.slots, *[0] * (max(lengths) - len(row.slots))] for row in rows]
        metadata = AttentionMetadata(
            slot_mapping=torch.tensor([slot for row in rows for slot in row.slots[row.start :]]),  # (T,)
            block_tables=torch.tensor(block_tables, dtype=torch.int32),  # (R, longest row)
            seq_lens=torch.tensor(lengths, dtype=torch.int32),  # (R,)
            query_start_loc=torch.tensor([0, *accumulate(counts)], dtype=torch.int32),  # (R + 1,)
            max_query_len=max(counts),
            max_seq_len=max(lengths),
        )
        hidden = self._model(torch.tensor(token_ids), torch.tensor(positions), self._kv_cache, metadata)
        last = metadata.query_start_loc[1:].long() - 1  # each row's last token among the T of the call
        return self._model.compute_logits(hidden[last]).argmax(dim=-1).tolist()

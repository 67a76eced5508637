"""A real Llama behind the project's interface: rows in, one token id per row out.

The KV cache of minivllm has blocks; here a block is one slot, so a row's list of slots is its block table,
and any engine fits, paged or not::

    Row([t6], slots=[28, 29, 30, 31, 8, 9, 10])  ->  ScheduledSequence(start=6, token_ids=(t6,),
                                                                       block_ids=(28, 29, 30, 31, 8, 9, 10))

So a call is a plan, and minivllm's own runner (`model_runner.py`) makes tensors of it and runs the model.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.course.project.model import Row, check_rows
from minivllm.kv_cache import KVCache
from minivllm.model_runner import ModelRunner
from minivllm.sampler import Sampler
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence, SchedulerOutput
from minivllm.weights.hf_config import load_model_config
from minivllm.weights.loader import load_model

GREEDY = SamplingParams(temperature=0.0)


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
        model = load_model(folder, attention, torch.float32, "cpu")
        self._runner = ModelRunner(model, KVCache(config, num_slots, 1, torch.float32, "cpu"), Sampler())

    def forward(self, rows: list[Row]) -> list[int]:
        """See `Model.forward`. A slot into which nothing was written reads as zeros, without a word."""
        check_rows(rows, self.num_slots)
        plan = SchedulerOutput(0, tuple(scheduled(row, number) for number, row in enumerate(rows)))
        return [output.token_ids[0][0] for output in self._runner.execute_model(plan)]


def scheduled(row: Row, number: int) -> ScheduledSequence:
    """A row of a call as a row of a plan: its token is sampled, greedily."""
    length = len(row.slots)
    sampling = SamplingMetadata(GREEDY, 1, 0, position=length, num_prompt_tokens=length)
    return ScheduledSequence(str(number), number, row.start, tuple(row.token_ids), tuple(row.slots), sampling)

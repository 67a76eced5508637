"""The model runner: one step on the device.

This is the only place where lists become tensors and tensors become lists again. Above it everything is plain
Python, below it everything is torch. The runner turns the plan into packed tensors, moves blocks, runs the
model, samples, and hands back token ids. No token is padding: the sequences lie one after the other.

Example: block_size 4, sequence A with table [7, 2] prefills 6 tokens, B with table [5] decodes its 3rd::

    input_ids        a0 a1 a2 a3 a4 a5 | b2            (T,)  T = 7 scheduled tokens
    positions         0  1  2  3  4  5 |  2            (T,)
    slot_mapping     28 29 30 31  8  9 | 22            (T,)  block_table[position // 4] * 4 + position % 4
    query_start_loc   0                  6  7          (R + 1,)
    seq_lens         [6, 3]                            (R,)  KV length, this step's tokens included
    block_tables     [[7, 2], [5, 0]]                  (R, most blocks), padded with 0
    sampled from                     a5 | b2           logits are computed for these rows only

Block moves come first and in this order: swap out, swap in, copy. A block that is swapped out may be handed
to another sequence in the same step, and a block just swapped in may be the source of a copy.

vLLM V1: `vllm/v1/worker/gpu_model_runner.py` (`_prepare_inputs`, `execute_model`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np
import torch

from minivllm.attention import AttentionMetadata
from minivllm.kv_cache import KVCache
from minivllm.model import Model
from minivllm.outputs import SequenceOutput, TokenLogprobs
from minivllm.sampler import token_logprobs
from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput
from minivllm.speculative.verification import accept, sampled_rows

SamplerFunction = Callable[[torch.Tensor, list[ScheduledSequence]], list[SequenceOutput]]

# Rows of logits made at once for prompt_logprobs: 256 x 49,152 x 4 bytes = 48 MiB.
_PROMPT_LOGPROBS_ROWS = 256


@dataclass(frozen=True)
class ModelInputs:
    """The tensors of one step (see the picture above)."""

    # (T,) int64
    input_ids: torch.Tensor
    # (T,) int64
    positions: torch.Tensor
    metadata: AttentionMetadata
    # (N,) int64: which of the T tokens are sampled from, in the order of the plan
    sampled_rows: torch.Tensor


class Drafter(Protocol):
    """What makes drafts within a step: `speculative/draft_model.py`."""

    def fill_in(self, plan: SchedulerOutput) -> SchedulerOutput:
        """The plan with `draft_token_ids` in each row that has room for drafts."""


class DecodeSteps(Protocol):
    """Forward passes of decode steps, made ready before: `backends/cuda_graphs.py`, `compiled_steps.py`."""

    def fits(self, metadata: AttentionMetadata) -> bool:
        """Whether this step is one of them."""

    def run(
        self, input_ids: torch.Tensor, positions: torch.Tensor, metadata: AttentionMetadata
    ) -> torch.Tensor:
        """(T,) both -> (T, hidden), as the model itself."""


class ModelRunner:
    """Runs plans on a model and its KV cache.

    Args:
        model: with its weights.
        kv_cache: the physical blocks; the runner is the only one to touch them.
        sampler: a function (logits (N, V), rows) -> one SequenceOutput per row.
        decode_steps: recorded (GPU) or compiled (CPU); None: every step runs call by call.
        drafter: fills in the drafts of a plan; None: they are in it already, or there are none.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        sampler: SamplerFunction,
        decode_steps: DecodeSteps | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.sampler = sampler
        self.decode_steps = decode_steps
        self.drafter = drafter
        self.device = kv_cache.key[0].device

    def prepare_inputs(self, plan: SchedulerOutput) -> ModelInputs:
        """Pack the plan into tensors, on the host, and send them to the device.

        Numpy does the packing: the arrays are small, and a tensor operation costs ten times as much as one of
        numpy's before it does anything.
        """
        rows, block_size = plan.scheduled, self.kv_cache.block_size
        num_tokens = np.array([row.num_tokens for row in rows])
        starts = np.array([row.start for row in rows])
        query_start_loc = np.concatenate([[0], num_tokens.cumsum()])
        block_tables = np.zeros((len(rows), max(len(row.block_ids) for row in rows)), dtype=np.int32)
        input_ids: list[int] = []
        for i, row in enumerate(rows):
            block_tables[i, : len(row.block_ids)] = row.block_ids
            input_ids += row.token_ids + row.draft_token_ids

        # For each of the T tokens: its row, its position, and from the two its slot. B's token in the example
        # is number 6 of the batch, B's first token too, and stands at position 2: 6 - (6 - 2) = 2.
        row_of_token = np.repeat(np.arange(len(rows)), num_tokens)  # (T,)
        positions = np.arange(len(input_ids)) - (query_start_loc[:-1] - starts)[row_of_token]  # (T,)
        blocks = block_tables[row_of_token, positions // block_size]
        slot_mapping = blocks.astype(np.int64) * block_size + positions % block_size
        seq_lens = starts + num_tokens
        # A row with k drafts is sampled from k + 1 times: after its last known token and after each draft.
        sampled = [
            index
            for row, end in zip(rows, query_start_loc[1:].tolist(), strict=True)
            if row.num_samples > 0
            for index in range(end - 1 - row.num_drafts, end)
        ]

        metadata = AttentionMetadata(
            slot_mapping=self._to_device(slot_mapping),
            block_tables=self._to_device(block_tables),
            seq_lens=self._to_device(seq_lens.astype(np.int32)),
            query_start_loc=self._to_device(query_start_loc.astype(np.int32)),
            max_query_len=int(num_tokens.max()),
            max_seq_len=int(seq_lens.max()),
        )
        return ModelInputs(
            input_ids=self._to_device(np.array(input_ids, dtype=np.int64)),
            positions=self._to_device(positions),
            metadata=metadata,
            sampled_rows=self._to_device(np.array(sampled, dtype=np.int64)),
        )

    @torch.inference_mode()
    def execute_model(self, plan: SchedulerOutput) -> list[SequenceOutput]:
        """Carry out one step; returns one output for each of `plan.scheduled`, in its order.

        The hidden states come from `decode_steps` if the step fits.
        """
        if self.drafter is not None:
            plan = self.drafter.fill_in(plan)
        self.kv_cache.swap_out(plan.blocks_to_swap_out)
        self.kv_cache.swap_in(plan.blocks_to_swap_in)
        self.kv_cache.copy_blocks(plan.blocks_to_copy)
        if not plan.scheduled:
            return []
        inputs = self.prepare_inputs(plan)
        if self.decode_steps is not None and self.decode_steps.fits(inputs.metadata):
            hidden = self.decode_steps.run(inputs.input_ids, inputs.positions, inputs.metadata)
        else:
            hidden = self.model(inputs.input_ids, inputs.positions, self.kv_cache, inputs.metadata)
        # A chunk in the middle of a prompt has nothing to sample yet: an empty output.
        outputs = [SequenceOutput()] * len(plan.scheduled)
        sampled = {i: sampled_rows(row) for i, row in enumerate(plan.scheduled) if row.num_samples > 0}
        if sampled:
            # The head is the largest matrix of a small model, so only the last tokens go through it.
            logits = self.model.compute_logits(hidden[inputs.sampled_rows])  # (N, V)
            chosen = iter(self.sampler(logits, [row for rows in sampled.values() for row in rows]))
            for i, rows in sampled.items():
                outputs[i] = accept(plan.scheduled[i].draft_token_ids, islice(chosen, len(rows)))
        self._add_prompt_logprobs(plan, hidden, outputs)
        return outputs

    def _add_prompt_logprobs(
        self, plan: SchedulerOutput, hidden: torch.Tensor, outputs: list[SequenceOutput]
    ) -> None:
        """For requests that ask: the log-probability of each prompt token given those before it.

        The logits of a row's i-th token speak about the token that follows it, `scored_token_ids[i]`.
        """
        first = 0  # where the row's tokens begin among the T of the step
        for i, row in enumerate(plan.scheduled):
            entries: list[TokenLogprobs] = []
            for start in range(0, len(row.scored_token_ids), _PROMPT_LOGPROBS_ROWS):
                tokens = row.scored_token_ids[start : start + _PROMPT_LOGPROBS_ROWS]
                logits = self.model.compute_logits(hidden[first + start : first + start + len(tokens)])
                entries += token_logprobs(logits, list(tokens), [row.num_prompt_logprobs] * len(tokens))
            if entries:
                outputs[i] = replace(outputs[i], prompt_logprobs=tuple(entries))
            first += row.num_tokens

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        """Send an array to the device; from pinned memory, so that the host does not wait for the copy."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

"""What the project hands to a student's engine: the model's one call, and the limits to keep.

A call computes some new tokens of some sequences. For each sequence the call gets one `Row`: the new tokens,
and the slot of every position of the sequence up to the last of them. A sequence of 6 tokens in the slots
28..31, 8 and 9::

    position            0   1   2   3   4   5  |  6
    slots              28  29  30  31   8   9  | 10

    the whole prompt   Row(token_ids=[t0 .. t5], slots=[28, 29, 30, 31, 8, 9])       writes 28..31, 8, 9
    one token more     Row(token_ids=[t6], slots=[28, 29, 30, 31, 8, 9, 10])         writes 10, reads the rest

New tokens are the last ones of their sequence, so their positions follow from the two lengths. Their K and V
are written into their slots; then each attends to the slots of its own row, up to itself. What a slot held
before does not matter when the slot is written, and matters a great deal when it is read.

vLLM V1 gives its model the same in tensors: `vllm/v1/worker/gpu_model_runner.py`; here: `attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol


class ModelMisuse(ValueError):
    """A call that no engine should make; the message says which row, and what is wrong with it."""


@dataclass(frozen=True)
class Row:
    """One sequence's part of a call.

    Attributes:
        token_ids: the new tokens, at least one.
        slots: for every position so far, that of the last new token included, the slot of its K and V.
    """

    token_ids: Sequence[int]
    slots: Sequence[int]

    @property
    def start(self) -> int:
        """Position of the first new token; all positions before it are read from their slots."""
        return len(self.slots) - len(self.token_ids)


@dataclass(frozen=True)
class Limits:
    """What an engine has to keep. Each counts from the milestone in brackets on.

    Attributes:
        max_model_len: no sequence is longer, prompt and output together [2].
        max_num_seqs: rows of one call [3].
        block_size: consecutive slots of a block; block b is the slots from b * block_size on [5].
        max_num_batched_tokens: new tokens of one call, over all rows [6].
    """

    max_model_len: int = 64
    max_num_seqs: int = 4
    block_size: int = 4
    max_num_batched_tokens: int = 1024


class Model(Protocol):
    """A language model and its KV memory. The memory is one long row of slots, which the engine hands out."""

    num_slots: int

    def forward(self, rows: list[Row]) -> list[int]:
        """Compute the new tokens of all rows; for each row, the likeliest token after its last one.

        That token is of use only where the row's last token is the last of its sequence: in the middle of a
        prompt it is a guess at what the prompt says next.

        Raises:
            ModelMisuse: no row, a row without new tokens, or slots that do not exist or are used twice.
        """


def check_rows(rows: Sequence[Row], num_slots: int) -> None:
    """Raise ModelMisuse, before anything is computed, if a call makes no sense for so many slots."""
    if not rows:
        raise ModelMisuse("forward was called without rows: what is the engine waiting for?")
    for number, row in enumerate(rows):
        if not row.token_ids:
            raise ModelMisuse(f"row {number} has no new token: at least one has to be computed.")
        if row.start < 0:
            raise ModelMisuse(
                f"row {number} has {len(row.token_ids)} new tokens and {len(row.slots)} slots: expected one "
                f"slot for every position of the sequence, new ones included."
            )
        wrong = [slot for slot in row.slots if not 0 <= slot < num_slots]
        if wrong:
            raise ModelMisuse(f"row {number} uses slot {wrong[0]}: expected slots from 0 to {num_slots - 1}.")
        if len(set(row.slots)) < len(row.slots):
            raise ModelMisuse(f"row {number} uses a slot for two of its positions: {list(row.slots)}.")
    written = list(chain.from_iterable(row.slots[row.start :] for row in rows))
    if len(set(written)) < len(written):
        twice = next(slot for slot in written if written.count(slot) > 1)
        raise ModelMisuse(f"two rows write into slot {twice} in one call: one of the two tokens is lost.")

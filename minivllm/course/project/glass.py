"""A model of glass: it computes a checksum in place of a Transformer, and one can see into its memory.

The likeliest next token is a checksum of the whole text so far. As in a Transformer it depends on every token
before, and the model knows these through the slots only: a slot remembers its token, and after which text it
stands::

    call                                    slot 0   slot 1   slot 2   slot 3
    Row([7, 3], slots=[0, 1])               7        7 3
    Row([9], slots=[0, 1, 2])               7        7 3      7 3 9             next token: checksum(7 3 9)
    Row([4], slots=[0, 2, 3])               ModelMisuse: row 0, position 1 reads slot 2, which holds [7, 3, 9]

With a Llama the third call would give some text, and one would wonder why it is not the right one. The model
of glass says at once what has been read from where. It is exact (no rounding, so nothing depends on the
batch), takes microseconds, and needs no torch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from minivllm.course.project.model import ModelMisuse, Row, check_rows

VOCAB_SIZE = 256


@dataclass(frozen=True)
class Seen:
    """What a call told about one row.

    Attributes:
        text: all tokens of the sequence, up to the last one that this call computed.
        start: how many of them were read from memory and not computed.
        slots: one per token of `text`.
    """

    text: bytes
    start: int
    slots: tuple[int, ...]

    @property
    def num_new(self) -> int:
        """How many tokens the call computed for this row."""
        return len(self.text) - self.start


def next_token(text: Sequence[int]) -> int:
    """The likeliest token after `text`, the whole of it; both are token ids below 256."""
    return zlib.crc32(bytes(text)) % VOCAB_SIZE


class GlassModel:
    """See the top of this file; a `Model`.

    Attributes:
        num_slots: the size of its memory.
        calls: what each call told, in order: one `Seen` per row.

    Args:
        max_calls: a call beyond them is a ModelMisuse: the engine goes round in circles.
    """

    def __init__(self, num_slots: int, max_calls: int = 2000) -> None:
        self.num_slots = num_slots
        self.calls: list[tuple[Seen, ...]] = []
        self._max_calls = max_calls
        self._texts: dict[int, bytes] = {}  # slot -> the text that ends with the token which it holds

    def forward(self, rows: list[Row]) -> list[int]:
        """Remember the new tokens, and check that every slot which is read holds what it should.

        A row may read what the rows before it in the same call write, as with a Llama.

        Raises:
            ModelMisuse: see `Model.forward`; also a token that is none, and a slot that holds something else.
        """
        check_rows(rows, self.num_slots)
        if len(self.calls) == self._max_calls:
            raise ModelMisuse(f"the model has been called {self._max_calls} times: does a request never end?")
        seen = []
        for number, row in enumerate(rows):
            text = self._text_before(number, row)
            for token_id, slot in zip(row.token_ids, row.slots[row.start :], strict=True):
                if not 0 <= token_id < VOCAB_SIZE:
                    raise ModelMisuse(
                        f"row {number} has the token {token_id}: there are 0 to {VOCAB_SIZE - 1}."
                    )
                text += bytes([token_id])
                self._texts[slot] = text
            seen.append(Seen(text, row.start, tuple(row.slots)))
        # After all writes, as in a Transformer: a slot that one row overwrites is lost to the others.
        for number, each in enumerate(seen):
            for position, slot in enumerate(each.slots):
                self._check(number, position, slot, each.text)
        self.calls.append(tuple(seen))
        return [next_token(each.text) for each in seen]

    def _text_before(self, number: int, row: Row) -> bytes:
        """The text that a row reads from memory: what its last old slot says."""
        if row.start == 0:
            return b""
        slot = row.slots[row.start - 1]
        text = self._texts.get(slot, b"")
        if len(text) != row.start:
            self._check(number, row.start - 1, slot, b"")
        return text

    def _check(self, number: int, position: int, slot: int, text: bytes) -> None:
        """Raise unless `slot` holds position `position` of `text`."""
        held = self._texts.get(slot)
        if held is None:
            raise ModelMisuse(
                f"row {number}, position {position} reads slot {slot}, into which nothing has been written."
            )
        if held != text[: position + 1]:
            raise ModelMisuse(
                f"row {number}, position {position} reads slot {slot}, which holds another token: position "
                f"{len(held) - 1} of the text that begins with {list(held[:8])}."
            )

"""Token ids -> text, one token at a time.

A token is a piece of bytes, not of text: an emoji may be cut across three tokens. So a token cannot be
decoded alone, and decoding the whole output again after every token would take quadratic time. Instead the
bytes of one token are found (`_token_bytes`), and Python's incremental UTF-8 decoder makes them characters::

    token      "Hel"   "lo"    " \\xf0\\x9f"      "\\x98"          "\\x80"
    given out  "Hel"   "lo"    " "             (nothing)       "😀"
    waiting                    F0 9F           F0 9F 98

Two kinds of tokenizers write bytes, each in its own way. Both have the emoji's first byte as a token::

    byte-level (GPT-2, Llama 3, SmolLM2)    "ð"         one letter for each of the 256 values, see `_LETTERS`
    byte fallback (Llama 2)                 "<0xF0>"    and whole characters for everything common

All pieces together are what `tokenizer.decode` makes of the whole output, with these exceptions:

- The leading space stays. Some decoders, such as Llama 2's, strip it from each text they are given.
- Where bytes are no character, a cut character (1 to 3 bytes) or a stray byte becomes one U+FFFD, shown as a
  question mark. Llama 2's decoder makes a U+FFFD of every byte in such a run of byte tokens, and so of whole
  characters before and after the cut one; here these have been given out by then.
- `clean_up_tokenization_spaces`, which takes away the space before a full stop, is not applied. vLLM does not
  apply it either, nor does Hugging Face to a BPE tokenizer.

`StopChecker` looks for stop strings in the piece just given out, and in that part of the text before it in
which a stop string could begin.

vLLM V1: `vllm/v1/engine/detokenizer.py`, with `tokenizers.decoders.DecodeStream`. That class decodes a window
of the last tokens again for each new token; it gives out the prompt if the prompt ends in a cut character,
and takes quadratic time on bytes that do not become a character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CUT = "\ufffd"  # what a decoder makes of bytes that are no character, or not yet
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
# The letter that byte-level vocabularies write for each byte. Printable bytes stand for themselves, the other
# 68 take the letters from U+0100 on: a space (32) is "Ġ". So GPT-2's vocabulary is a file of text.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_LETTERS = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


class IncrementalDetokenizer:
    """The text of one completion, growing token by token; each token costs the same.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt_token_ids: what the completion continues. If that holds no text (skipped special tokens do not
            count), the completion begins a text, and loses the space that `tokenizer.decode` strips.
        skip_special_tokens: leave tokens like `<|im_end|>` out of the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, prompt_token_ids: list[int], skip_special_tokens: bool
    ) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._decode = _decoder(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        added = tokenizer.added_tokens_decoder.items() if skip_special_tokens else ()
        self._skipped = frozenset(token_id for token_id, token in added if token.special)
        self._at_start = self._skipped.issuperset(prompt_token_ids)

    def append(self, token_id: int) -> str:
        """Add one token; returns the characters that it completes, often one word, perhaps nothing."""
        if token_id in self._skipped:
            return ""  # as if it were not there, even inside a character
        piece = self._utf8.decode(self._token_bytes(token_id))
        self._at_start = False
        self.text += piece
        return piece

    def flush(self) -> str:
        """The completion has ended: a character that is still cut is given out as one U+FFFD."""
        piece = self._utf8.decode(b"", final=True)
        self.text += piece
        return piece

    def _token_bytes(self, token_id: int) -> bytes:
        """What one token adds to the text, in UTF-8.

        Decoders treat the first token of a text differently. In any other place the token's text is what it
        adds after a copy of itself. With "▁cat" of Llama 2: "cat cat" without "cat" is " cat".
        """
        alone = self._decode([token_id])
        text = alone if self._at_start else self._decode([token_id, token_id])[len(alone) :]
        if _CUT not in text:
            return text.encode()
        # The decoder has met bytes that are no character; only the vocabulary still has them.
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        if all(letter in _LETTERS for letter in token):
            return bytes(_LETTERS[letter] for letter in token)
        return text.encode()  # U+FFFD itself


def _decoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[Sequence[int]], str]:
    """What `tokenizer.decode` does, without looking at every token at what kind of list it was given.

    Such a look takes longer than decoding. A tokenizer written in Python is called as it is.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return tokenizer.decode if backend is None else partial(backend.decode, skip_special_tokens=False)


@dataclass(frozen=True)
class StopChecker:
    """Finds the first stop string in a growing text; each call looks at the end of the text only."""

    stop_strings: tuple[str, ...]
    include_in_output: bool

    @property
    def num_held_back(self) -> int:
        """Characters at the end of a streamed text that may still turn out to begin a stop string."""
        return 0 if self.include_in_output else max((len(stop) - 1 for stop in self.stop_strings), default=0)

    def check(self, text: str, num_new: int) -> tuple[str, int] | None:
        """Look for a stop string that ends in the last `num_new` characters.

        Returns:
            (the stop string, where to cut the text), for the one that begins first; None if there is none.
        """
        before = len(text) - num_new
        starts = [(text.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self.stop_strings]
        found = [(start, stop) for start, stop in starts if start >= 0]
        if not found:
            return None
        start, stop = min(found)
        return stop, start + len(stop) if self.include_in_output else start

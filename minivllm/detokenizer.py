"""Token ids -> text, one token at a time.

A token is a piece of bytes, not of text: an emoji may be cut across three tokens, and in many vocabularies
the first token of a text loses its leading space when decoded alone. So the tokens cannot simply be decoded
one by one and joined, and decoding all of them again after every token would take quadratic time.
`IncrementalDetokenizer` decodes a short window of the last tokens, and gives out what is new in its text and
can no longer change. A cut character decodes to U+FFFD (shown as ?), so it waits for what comes next::

    token            "Hel"   "lo"      " \\xf0\\x9f"    "\\x98"       "\\x80"
    window's text    "Hel"   "Hello"   "Hello ?"    "Hello ?"    "Hello 😀"
    given out        "Hel"   "lo"      " "          (nothing)    "😀"

All pieces together are what `tokenizer.decode` makes of the whole output (with its leading space, which some
decoders strip from whatever they are given).

`StopChecker` looks for stop strings in what has just been given out, and in so much of the text before it as
a stop string could begin in.

vLLM V1: `vllm/v1/engine/detokenizer.py` (with `tokenizers.DecodeStream`, the same idea in Rust; it gives out
the prompt if that ends in a cut character, and takes quadratic time on bytes that never become one).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CUT = "\ufffd"  # what a decoder makes of bytes that are no character, or not yet
_CONTEXT = 4  # tokens that stay, at least, when the window moves on: none is decoded as the first of a text
_WINDOW = 8  # from here on the window moves on, as soon as its text is certain
_LONGEST_WINDOW = 16  # and from here on in any case
_LONGEST_CUT = 3  # a character has at most 4 bytes, so one that is cut decodes to at most 3 U+FFFD
_UNDECIDED = 10  # tokens that stay of a window of that length: they hold the last 3 U+FFFD, of 3 bytes each


class IncrementalDetokenizer:
    """The text of one completion, growing token by token in time linear in its length.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt_token_ids: what the completion continues; decides about its leading space.
        skip_special_tokens: leave tokens like `<|im_end|>` out of the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, prompt_token_ids: list[int], skip_special_tokens: bool
    ) -> None:
        self.text = ""
        self._decode = _decoder(tokenizer)
        added = tokenizer.added_tokens_decoder.items() if skip_special_tokens else ()
        self._skipped = frozenset(token_id for token_id, token in added if token.special)
        # `_num_given`: how many characters of the window's text were given out, or are the prompt's.
        self._window, self._num_given = self._context(prompt_token_ids[-_LONGEST_WINDOW:])

    def append(self, token_id: int) -> str:
        """Add one token; returns the text that became certain, often one word, perhaps nothing."""
        if token_id in self._skipped:
            return ""  # as if it were not there, even inside a character
        self._window.append(token_id)
        text = self._decode(self._window)
        certain = len(text.rstrip(_CUT))
        if len(self._window) >= _LONGEST_WINDOW:
            # So many bytes without an end are no character: only the last few may still become one.
            certain = max(certain, len(text) - _LONGEST_CUT)
        piece = self._give(text, certain)
        if certain == len(text) and len(self._window) >= _WINDOW:
            self._window, self._num_given = self._context(self._window)
        elif len(self._window) >= _LONGEST_WINDOW:
            self._window = self._window[-_UNDECIDED:]
            self._num_given = len(self._decode(self._window)) - (len(text) - certain)
        return piece

    def flush(self) -> str:
        """The completion has ended: give out what is undecided, a cut character as U+FFFD."""
        text = self._decode(self._window)
        return self._give(text, len(text))

    def _give(self, text: str, end: int) -> str:
        """Give out the window's text up to `end`, but for what has been given out before."""
        piece = text[self._num_given : end]
        self._num_given += len(piece)
        self.text += piece
        return piece

    def _context(self, token_ids: list[int]) -> tuple[list[int], int]:
        """A short end of `token_ids` that begins and ends with whole characters, and how many these are.

        Nothing, if there is none: a completion does not repair a character that its prompt left cut.
        """
        token_ids = [token for token in token_ids if token not in self._skipped]
        for size in range(_CONTEXT, _LONGEST_WINDOW):
            text = self._decode(token_ids[-size:])
            if text and _CUT not in text:
                return token_ids[-size:], len(text)
        return [], 0


def _decoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[list[int]], str]:
    """What `tokenizer.decode` does, without asking at every token what kind of list it was given.

    That takes longer than decoding. A tokenizer written in Python, or one that tidies up its text afterwards,
    is called as it is.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.clean_up_tokenization_spaces:
        return tokenizer.decode
    return partial(backend.decode, skip_special_tokens=False)


class StopChecker:
    """Finds the first stop string in a growing text, looking at every character a bounded number of times."""

    def __init__(self, stop_strings: tuple[str, ...], include_in_output: bool) -> None:
        self.stop_strings = stop_strings
        self.include_in_output = include_in_output
        self.longest = max((len(stop) for stop in stop_strings), default=0)

    @property
    def num_held_back(self) -> int:
        """Characters at the end of a streamed text that may still turn out to begin a stop string."""
        return 0 if self.include_in_output else max(0, self.longest - 1)

    def check(self, text: str, num_new: int) -> tuple[str, int] | None:
        """Look for a stop string that ends in the last `num_new` characters.

        Returns:
            (the stop string, where to cut the text), for the one that begins first; None if there is none.
        """
        found = []
        for stop in self.stop_strings:
            start = text.find(stop, max(0, len(text) - num_new - len(stop) + 1))
            if start >= 0:
                found.append((start, stop))
        if not found:
            return None
        start, stop = min(found)
        return stop, start + len(stop) if self.include_in_output else start

"""Token ids -> text, one token at a time.

A token is a piece of bytes, not of text: an emoji may be cut across three tokens, and in many vocabularies
the first token of a text loses its leading space when decoded alone. So the tokens cannot simply be decoded
one by one and joined, and decoding all of them again after every token would take quadratic time.
`tokenizers.DecodeStream` solves both: it keeps a short window of undecided tokens and gives out text once
later tokens can no longer change it::

    token        "Hel"    "lo"    " \\xf0\\x9f"   "\\x98"    "\\x80"
    given out    "Hel"    "lo"    (nothing)     (nothing)  " 😀"

`StopChecker` looks for stop strings in what has just been given out, and in so much of the text before it as
a stop string could begin in.

vLLM V1: `vllm/v1/engine/detokenizer.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class IncrementalDetokenizer:
    """The text of one completion, growing token by token in time linear in its length.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        prompt_token_ids: what the completion continues; decides about its leading space.
        skip_special_tokens: leave tokens like `<|im_end|>` out of the text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, prompt_token_ids: list[int], skip_special_tokens: bool
    ) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(ids=prompt_token_ids, skip_special_tokens=skip_special_tokens)
        self._pending: list[int] = []  # tokens that have given no text yet

    def append(self, token_id: int) -> str:
        """Add one token; returns the text that became certain, often one word, perhaps nothing."""
        piece = self._stream.step(self._tokenizer.backend_tokenizer, token_id)
        if piece is None:
            self._pending.append(token_id)
            return ""
        self._pending.clear()
        self.text += piece
        return piece

    def flush(self) -> str:
        """The completion has ended: give out what is pending, a cut character as U+FFFD."""
        piece = self._tokenizer.decode(self._pending, skip_special_tokens=self._skip_special_tokens)
        self._pending.clear()
        self.text += piece
        return piece


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

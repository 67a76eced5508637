"""What log-probabilities call a token, and its bytes: for tokens that are not whole characters.

A token is a piece of bytes. Where it cuts a character, it decodes to U+FFFD, and so do many others. OpenAI's
names tell them apart, and the bytes of several such tokens in a row make the character::

    token       decodes to   name                  bytes
    " Paris"    " Paris"     " Paris"              32, 80, 97, 114, 105, 115
    F0 9F       "\\ufffd"     "bytes:\\\\xf0\\\\x9f"    240, 159
    98          "\\ufffd"     "bytes:\\\\x98"          152
    80          "\\ufffd"     "bytes:\\\\x80"          128           all three: 😀

vLLM V1: `vllm/v1/engine/logprobs.py` shows the character, once it is whole, at the last of its tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")


class TokenNames:
    """Names and bytes of a vocabulary's tokens.

    The vocabulary is read once, when this is made: afterwards the tokenizer is the engine's thread's alone.

    Args:
        tokenizer: byte-level (GPT-2, Llama 3, SmolLM2), or with a token for each byte (Llama 2). The cut
            tokens of any other kind keep U+FFFD, as name and in bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary = tokenizer.get_vocab().items()
        self._cut = {
            token_id: raw for token, token_id in vocabulary if (raw := _cut_bytes(token)) is not None
        }

    def bytes_of(self, token_id: int | None, text: str) -> bytes:
        """What the token (None: there is none) adds to an answer; `text` is what it decodes to alone."""
        # A whole "é" of another kind of vocabulary looks like byte E9 of a byte-level one: its text decides.
        return self._cut.get(token_id, text.encode()) if "\ufffd" in text else text.encode()

    def name(self, token_id: int | None, text: str) -> str:
        """`text`, or for a token that cuts a character its bytes."""
        raw = self.bytes_of(token_id, text)
        return text if _is_utf8(raw) else f"bytes:{repr(raw)[2:-1]}"


_BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}


def _cut_bytes(token: str) -> bytes | None:
    """The bytes that a vocabulary's entry stands for, if they are not whole characters."""
    if match := _BYTE_TOKEN.fullmatch(token):
        raw = bytes.fromhex(match[1])
    elif not token.isascii() and all(letter in _BYTES for letter in token):
        raw = bytes(_BYTES[letter] for letter in token)
    else:
        return None
    return None if _is_utf8(raw) else raw


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True

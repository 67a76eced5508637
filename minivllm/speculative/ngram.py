"""Guess the next tokens by looking the last ones up in the text so far: no model, no training.

Edited texts, quotations and programs repeat what stands in the prompt. So find the latest earlier place of
the last n tokens and copy what followed there, the longest n first::

    tokens       7  1  2  3  9  4  8  1  2  3        n = 4: [8 1 2 3] has not occurred before
                    ^  ^  ^  .  .  .                 n = 3: [1 2 3] has; 9 4 8 1 followed
    drafts                            9  4  8  1

The copy may run into itself, as in the compressor LZ77: after [.. 5 6 5 6] the match of [5 6] lies two
tokens back, so what follows is 5 6, then the drafts themselves: 5 6 5 6 5 6.

What it costs: for each n one search by `bytes.rfind`, which runs at memory speed (8,192 tokens are 32 KB),
and the copy of the tokens into an array, about 0.2 ms for 8,192. There is no index which would have to
follow each append, fork, preemption and stop string. Long n-grams find no better drafts and cost a search
each: 4 is plenty.

Saxena, "Prompt Lookup Decoding" (2023). vLLM V1: `vllm/v1/spec_decode/ngram_proposer.py`, which takes the
earliest place, found for all n in one pass of the Knuth-Morris-Pratt algorithm, and does not run into
itself."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def propose_ngram(token_ids: Sequence[int], count: int, longest: int, shortest: int = 1) -> tuple[int, ...]:
    """`count` drafts to follow `token_ids`, or none if no n-gram at their end occurred before.

    Args:
        token_ids: prompt and output, each id below 2**31.
        count: how many drafts are wanted, at least 1.
        longest, shortest: n-grams of how many tokens are looked up, the longest first.
    """
    data = array("i", token_ids)
    text, width = data.tobytes(), data.itemsize
    for n in range(min(longest, len(data) - 1), shortest - 1, -1):
        pattern, end = text[-n * width :], len(text) - width  # at least one token must follow the match
        while (found := text.rfind(pattern, 0, end)) >= 0:
            if found % width == 0:
                return _copy(data, found // width + n, count)
            # Bytes of two neighbours which look like a token: go on to the left.
            end = found + len(pattern) - 1
    return ()


def _copy(data: array, start: int, count: int) -> tuple[int, ...]:
    """The `count` tokens from `start` on, where those copied count as text as well."""
    for index in range(start, start + count):
        data.append(data[index])
    return tuple(data[-count:])


def propose_ngram_reference(
    token_ids: Sequence[int], count: int, longest: int, shortest: int = 1
) -> tuple[int, ...]:
    """The same, token by token: the slow twin."""
    tokens = list(token_ids)
    for n in range(longest, shortest - 1, -1):
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == tokens[-n:]:
                drafts: list[int] = []
                for index in range(start + n, start + n + count):
                    drafts.append((tokens + drafts)[index])
                return tuple(drafts)
    return ()

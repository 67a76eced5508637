"""What a client gets back: the outputs of the engine in OpenAI's two formats, whole or in chunks.

A `Reply` makes both. Fed with deltas it makes the chunks of a stream; fed with last outputs, one body::

    delta " Paris"    {"choices": [{"index": 0, "text": " Paris", "finish_reason": null}]}
    delta "."         {"choices": [{"index": 0, "text": ".", "finish_reason": "length"}]}
    usage             {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, ...}}

Choices count through: with two prompts and n = 3, choice 4 is the second completion of the second prompt.
Each `finish_reason` is the engine's own: "stop" where a stop string or an end token came, "length" at
max_tokens.

vLLM V1: `vllm/entrypoints/openai/completion/serving.py`, `chat_completion/serving.py`.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from codecs import IncrementalDecoder, getincrementaldecoder
from typing import Any

from minivllm.outputs import CompletionOutput, Logprob, RequestOutput
from minivllm.server.token_names import TokenNames

# Minus infinity is no JSON; vLLM's stand-in for it.
LOWEST_LOGPROB = -9999.0
_UTF8 = getincrementaldecoder("utf-8")


class Reply(ABC):
    """The answer to one HTTP request, which may have several prompts.

    Args:
        model: the name to show.
        n: completions per prompt.
        prefix: of the id; the requests in the engine are called `{id}-0`, `{id}-1`, ...
        token_names: what log-probabilities call the tokens.
    """

    kind = chunk_kind = ""

    def __init__(self, model: str, n: int, prefix: str, token_names: TokenNames) -> None:
        self.id = f"{prefix}-{uuid.uuid4().hex}"
        self.header = {"id": self.id, "created": int(time.time()), "model": model}
        self.n, self.token_names = n, token_names
        # By request: the same number in every output of it, so the newest may overwrite.
        self._prompt_tokens: dict[str, int] = {}
        self._cached_tokens: dict[str, int] = {}
        self._completion_tokens = 0

    @abstractmethod
    def choice(self, index: int, output: RequestOutput, completion: CompletionOutput) -> dict[str, Any]:
        """One choice of a whole body."""

    @abstractmethod
    def deltas(self, index: int, output: RequestOutput, completion: CompletionOutput) -> list[dict[str, Any]]:
        """The choices of the chunks that tell what is new in `completion`."""

    def chunks(self, output: RequestOutput) -> list[dict[str, Any]]:
        """The chunks of one delta."""
        self._count(output)
        return [
            {**self.header, "object": self.chunk_kind, "choices": [choice]}
            for completion in output.outputs
            for choice in self.deltas(self._index(output, completion), output, completion)
        ]

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, for `include_usage`."""
        return {**self.header, "object": self.chunk_kind, "choices": [], "usage": self.usage()}

    def body(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        """The whole answer, from the last output of each request."""
        for output in outputs:
            self._count(output)
        choices = [
            self.choice(self._index(output, completion), output, completion)
            for output in outputs
            for completion in output.outputs
        ]
        choices.sort(key=lambda choice: choice["index"])
        return {**self.header, "object": self.kind, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens so far."""
        prompt, completion = sum(self._prompt_tokens.values()), self._completion_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached_tokens.values())},
        }

    def _count(self, output: RequestOutput) -> None:
        self._prompt_tokens[output.request_id] = len(output.prompt_token_ids)
        self._cached_tokens[output.request_id] = output.num_cached_tokens or 0
        self._completion_tokens += sum(len(completion.token_ids) for completion in output.outputs)

    def _index(self, output: RequestOutput, completion: CompletionOutput) -> int:
        return int(output.request_id.rpartition("-")[2]) * self.n + completion.index


class CompletionReply(Reply):
    """The answer of /v1/completions.

    Args:
        echo: the prompt comes first, with its log-probabilities if those of the output were asked for.
        no_output: with echo and max_tokens=0, nothing but the prompt is wanted. (The engine made one token.)
    """

    kind = chunk_kind = "text_completion"

    def __init__(
        self, model: str, n: int, token_names: TokenNames, echo: bool = False, no_output: bool = False
    ) -> None:
        super().__init__(model, n, "cmpl", token_names)
        self.echo, self.no_output = echo, no_output
        # Each prompt's first token, which has no logprob: its id and text.
        self.first_words: dict[str, tuple[int, str]] = {}
        self._offsets: dict[int, int] = {}  # whole characters in a choice's tokens so far
        self._decoders: dict[int, IncrementalDecoder] = {}  # what comes behind them, by choice

    def choice(self, index: int, output: RequestOutput, completion: CompletionOutput) -> dict[str, Any]:
        """Text and log-probabilities; the first of a choice may begin with the prompt."""
        is_first = index not in self._offsets
        text, entries, words = completion.text, completion.logprobs, []
        if self.no_output:
            text, entries = "", None if entries is None else []
        if self.echo and is_first:
            text = (output.prompt or "") + text
            words = [None, *(output.prompt_logprobs or [None])[1:]] if entries is not None else []
        logprobs = None if entries is None else self._logprobs(index, output, [*words, *entries])
        self._offsets.setdefault(index, 0)
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": "length" if self.no_output else completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }

    def deltas(self, index: int, output: RequestOutput, completion: CompletionOutput) -> list[dict[str, Any]]:
        """One choice: a chunk has the form of a body."""
        return [self.choice(index, output, completion)]

    def _count(self, output: RequestOutput) -> None:
        super()._count(output)
        if self.no_output:  # the engine made a token which the request did not ask for
            self._completion_tokens = 0

    def _logprobs(
        self, index: int, output: RequestOutput, entries: list[dict[int, Logprob] | None]
    ) -> dict[str, list[Any]]:
        """OpenAI's four parallel lists. The token that stands at a position is the first of its dict.

        A `text_offset` is the number of characters before the token. The tokens of one character share it::

            tokens          "a"   "bytes:\\xf0\\x9f"   "bytes:\\x98"   "bytes:\\x80"   "b"
            text_offset      0     1                  1              1              2          text "a😀b"
        """
        tokens, chosen, top, offsets = [], [], [], []
        decoder = self._decoders.setdefault(index, _UTF8(errors="replace"))
        for entry in entries:
            token_id, text = self.first_words.get(output.request_id, (None, ""))
            first = None
            if entry is not None:
                token_id, first = next(iter(entry.items()))
                text = _word(first)
            tokens.append(self.token_names.name(token_id, text))
            chosen.append(None if first is None else _finite(first.logprob))
            top.append(entry and self._top(entry))
            offsets.append(self._offsets.get(index, 0))
            new = decoder.decode(self.token_names.bytes_of(token_id, text))
            self._offsets[index] = offsets[-1] + len(new)
        return {"text_offset": offsets, "token_logprobs": chosen, "tokens": tokens, "top_logprobs": top}

    def _top(self, entry: dict[int, Logprob]) -> dict[str, float]:
        name = self.token_names.name
        return {name(token_id, _word(each)): _finite(each.logprob) for token_id, each in entry.items()}


class ChatReply(Reply):
    """The answer of /v1/chat/completions; `num_top` log-probabilities at each position."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, n: int, token_names: TokenNames, num_top: int = 0) -> None:
        super().__init__(model, n, "chatcmpl", token_names)
        self.num_top = num_top
        self._begun: set[int] = set()  # choices whose role has been told

    def choice(self, index: int, output: RequestOutput, completion: CompletionOutput) -> dict[str, Any]:
        """The whole message."""
        message = {"role": "assistant", "content": completion.text}
        return {"index": index, "message": message} | self._rest(completion)

    def deltas(self, index: int, output: RequestOutput, completion: CompletionOutput) -> list[dict[str, Any]]:
        """At first the role alone, as OpenAI sends it; then what is new."""
        role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        first = [] if index in self._begun else [{"index": index} | role]
        self._begun.add(index)
        return [*first, {"index": index, "delta": {"content": completion.text}} | self._rest(completion)]

    def _rest(self, completion: CompletionOutput) -> dict[str, Any]:
        entries = completion.logprobs
        logprobs = None if entries is None else {"content": [self._logprob(entry) for entry in entries]}
        return {
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }

    def _logprob(self, entry: dict[int, Logprob]) -> dict[str, Any]:
        top = [pair for pair in entry.items() if pair[1].rank <= self.num_top]
        top.sort(key=lambda pair: pair[1].rank)
        first = next(iter(entry.items()))
        return self._token(*first) | {"top_logprobs": [self._token(*pair) for pair in top]}

    def _token(self, token_id: int, logprob: Logprob) -> dict[str, Any]:
        word, names = _word(logprob), self.token_names
        raw = names.bytes_of(token_id, word)
        return {"token": names.name(token_id, word), "logprob": _finite(logprob.logprob), "bytes": list(raw)}


def _word(logprob: Logprob) -> str:
    return logprob.decoded_token or ""


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)

"""The outputs of some requests on their way from the engine's thread to one reader: `OutputStream`.

The engine makes a token whenever it makes one; the reader takes it when its network is ready. Between the two
lies one output per request and no queue: what the reader has not taken yet is merged with what is new, so a
reader which sleeps for a minute costs as much memory as its answer is long, and wakes up to one large delta::

    engine    " Paris"   "."    " The"   " cap"            "ital" (finished)
    pending   " Paris"   -      "."      ". The"  ". The cap"   -       "ital"
    reader    " Paris"                            takes ". The cap"      takes "ital", and the stream ends

Everything here runs in the event loop's thread; `AsyncLLM` brings the outputs there.

vLLM V1: `RequestOutputCollector` in `vllm/v1/engine/output_processor.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from types import TracebackType
from typing import Any

from minivllm.outputs import CompletionOutput, RequestOutput


class OutputStream:
    """An async iterator over the outputs of one call, which may hold several requests.

    Args:
        request_ids: the requests; the stream ends when each has had its last output.
        is_delta: whether outputs hold only what is new, and are to be merged; otherwise the newest says all.
        on_close: called once, when the reader leaves, with the requests that are not finished by then.
    """

    def __init__(
        self, request_ids: Iterable[str], is_delta: bool, on_close: Callable[[list[str]], None]
    ) -> None:
        self._unfinished = dict.fromkeys(request_ids)  # in order
        self._is_delta = is_delta
        self._on_close = on_close
        self._pending: dict[str, RequestOutput] = {}
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def unfinished(self) -> list[str]:
        """Requests whose last output has not come yet."""
        return list(self._unfinished)

    @property
    def num_pending(self) -> int:
        """Outputs that wait for the reader: at most one per request."""
        return len(self._pending)

    # -- the engine's side --------------------------------------------------------------------------

    def put(self, output: RequestOutput) -> None:
        """Take in one output."""
        before = self._pending.get(output.request_id)
        merged = output if before is None or not self._is_delta else merge_deltas(before, output)
        self._pending[output.request_id] = merged
        if output.finished:
            self._unfinished.pop(output.request_id, None)
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """No more outputs will come; the reader gets what is pending, and then `error`."""
        self._error = error
        self._unfinished.clear()  # there is nothing left to give up
        self._changed.set()

    # -- the reader's side --------------------------------------------------------------------------

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> RequestOutput:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._pending.pop(next(iter(self._pending)))

    def close(self) -> None:
        """The reader leaves: requests that are not finished are given up. A second call does nothing."""
        on_close, self._on_close = self._on_close, _nothing
        on_close(self.unfinished)

    def __enter__(self) -> OutputStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def merge_deltas(before: RequestOutput, after: RequestOutput) -> RequestOutput:
    """Two deltas of one request as one: `before`, and then `after`.

    Example: [(0, "The"), (1, "A")] and [(1, " cat")] give [(0, "The"), (1, "A cat")], as (index, text).
    """
    completions = {each.index: each for each in before.outputs}
    for new in after.outputs:
        old = completions.get(new.index)
        completions[new.index] = new if old is None else _merge_completions(old, new)
    return replace(
        after,
        outputs=[completions[index] for index in sorted(completions)],
        prompt_logprobs=_joined(before.prompt_logprobs, after.prompt_logprobs),
    )


def _merge_completions(old: CompletionOutput, new: CompletionOutput) -> CompletionOutput:
    return replace(
        new,
        text=old.text + new.text,
        token_ids=old.token_ids + new.token_ids,
        logprobs=_joined(old.logprobs, new.logprobs),
    )


def _joined(old: list[Any] | None, new: list[Any] | None) -> list[Any] | None:
    """Both lists in a row; None if neither is there."""
    return None if old is None and new is None else [*(old or []), *(new or [])]


def _nothing(request_ids: list[str]) -> None:
    """What a closed stream calls when it is closed again."""

"""From a checked request to an answer: `Service`, which all routes share.

    submit     the requests of one reply go into the engine together: all are queued, or the client gets 400
    answer     stream=true: an event per output      else: one body, when the last output has come

Nothing is sent before the request has been queued, so that a wrong one gets 400 and not a stream that begins
with 200. After that an error is an event of the stream, and `[DONE]` does not follow it: a client must not
take a broken answer for a whole one.

Whether it streams or not, a client that goes away is noticed: uvicorn says so, the output stream is
closed, and the engine drops the request before its next step.

vLLM V1: `vllm/entrypoints/openai/engine/serving.py`, `with_cancellation` in `vllm/entrypoints/utils.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from minivllm.engine import LLMEngine
from minivllm.outputs import RequestOutput
from minivllm.sampling_params import SamplingParams
from minivllm.server.async_llm import AsyncLLM, MakeRequest
from minivllm.server.errors import APIError, as_api_error, error_body, json_response, to_json, wrong_request
from minivllm.server.output_stream import OutputStream
from minivllm.server.protocol import SamplingRequest
from minivllm.server.responses import Reply
from minivllm.server.token_names import TokenNames

Result = TypeVar("Result")


@dataclass
class Service:
    """What all routes share.

    Args:
        engine: serves the requests.
        names: of the model; the first is shown, all are taken.
        defaults: sampling parameters of a request that names none (the model's `generation_config.json`).
        max_unfinished: requests, queued and running, before new ones get 503.
        max_prompt_chars: a longer text cannot fit into the model, and is refused before it is tokenized.
        ping_seconds: a stream with nothing to say for so long sends a comment, which keeps proxies from
            closing the connection in the middle of a long step.
    """

    engine: AsyncLLM
    names: tuple[str, ...]
    defaults: SamplingParams = field(default_factory=SamplingParams)
    max_unfinished: int = 1024
    max_prompt_chars: int = 1_000_000
    ping_seconds: float = 10.0

    def __post_init__(self) -> None:
        self.token_names = TokenNames(self.engine.engine.tokenizer)

    def check_model(self, name: str | None) -> None:
        """Raise APIError 404 for another model than ours; None means ours."""
        if name is not None and name not in self.names:
            raise APIError(404, f"The model `{name}` does not exist.", "model")

    def check_length(self, text: str, param: str) -> None:
        """Raise APIError 400 for a text that no tokenizer could make short enough."""
        if len(text) > self.max_prompt_chars:
            limit = f"at most {self.max_prompt_chars} fit the model, got {len(text)}"
            raise APIError(400, f"{param} has too many characters: {limit}.", param)

    def check_output_limit(self, request: SamplingRequest) -> None:
        """Raise APIError 400 for more output tokens than even an empty prompt would leave room for.

        What the prompt at hand leaves no room for is cut off instead, as in vLLM, with "length".
        """
        (name, limit), longest = request.output_limit(), self.engine.engine.max_model_len
        if limit is not None and limit > longest:
            text = f"{name}={limit} cannot be greater than max_model_len={longest}."
            raise APIError(400, f"{text} Please request fewer output tokens.", name)

    async def submit(self, reply: Reply, makers: list[MakeRequest], params: SamplingParams) -> OutputStream:
        """Queue the requests of one reply.

        Raises:
            APIError: 400, one is wrong, or there are more than could ever be queued; 503, too many for now.
        """
        if len(makers) > self.max_unfinished:
            limit = f"at most {self.max_unfinished} prompts in one request, got {len(makers)}"
            raise APIError(400, f"prompt holds too many prompts: {limit}.", "prompt")
        if self.engine.num_unfinished + len(makers) > self.max_unfinished:
            raise APIError(503, "too many requests are waiting; try again.", headers={"Retry-After": "1"})
        requests = {f"{reply.id}-{number}": make for number, make in enumerate(makers)}
        try:
            return await self.engine.submit(requests, params.output_kind)
        except (ValueError, TypeError) as error:
            raise wrong_request(error) from None

    async def ask(self, function: Callable[[LLMEngine], Result]) -> Result:
        """What `function(engine)` returns, in the engine's thread; its ValueError is the client's fault."""
        try:
            return await self.engine.call(function)
        except (ValueError, TypeError) as error:
            raise wrong_request(error) from None

    async def answer(
        self, request: SamplingRequest, raw: Request, reply: Reply, stream: OutputStream
    ) -> Response:
        """The outputs as a stream of events or as one body, as the request asks."""
        if request.stream:
            return EventStream(stream, self._events(request, reply, stream))
        with stream:
            outputs = await while_connected(raw, _last_outputs(stream))
        return json_response(reply.body(outputs))

    async def _events(
        self, request: SamplingRequest, reply: Reply, stream: OutputStream
    ) -> AsyncIterator[bytes]:
        try:
            while True:
                try:
                    async with asyncio.timeout(self.ping_seconds):
                        output = await anext(stream)
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                except StopAsyncIteration:
                    break
                for chunk in reply.chunks(output):
                    usage = {"usage": reply.usage()} if request.continuous_usage else {}
                    yield event(chunk | usage)
        except Exception as error:
            told = as_api_error(error)
            yield event(error_body(told.status, told.message))
            return
        if request.include_usage:
            yield event(reply.usage_chunk())
        yield b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Server-sent events; however the response ends, the engine's stream is closed with it."""

    def __init__(self, stream: OutputStream, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, and close the stream."""
        with self._stream:
            await super().__call__(scope, receive, send)


def event(content: Any) -> bytes:
    """One server-sent event. JSON has no line breaks outside of escapes, so one `data:` line is enough."""
    return b"data: " + to_json(content) + b"\n\n"


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client goes away."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _last_outputs(stream: OutputStream) -> list[RequestOutput]:
    """The outputs of requests that make only one each; an engine's error is told as a client may see it."""
    try:
        return [output async for output in stream]
    except Exception as error:
        raise as_api_error(error) from None

"""`AsyncLLM`: one engine for any number of coroutines.

Why a thread: a step takes tens of milliseconds, and an event loop that ran it would read no request and write
no token meanwhile. So the loop body has a thread of its own, and this thread alone touches the engine. What
others want of the engine is handed over as a function, to be called between two steps; what comes of a step
goes back in one callback::

    event loop                                            engine's thread
    submit(["Hi"])   -- job: check, queue -->  jobs       run the jobs
    read the stream                                       step: schedule, execute_model, update_from_output
                     <-- outputs of the step --           hand over (one callback per step)
    reader leaves    -- job: abort -------->   jobs       run the jobs, step, hand over, ...

Neither side waits for the other: the event loop never runs a step, and a step never waits for a reader
(`output_stream.py`: what is not read is merged). An abort is a job, so the blocks of a reader that has left
are free before the next step begins.

A step that raises ends the requests which were in the engine with that error, and the thread goes on with the
next. `pause` keeps the thread from stepping while jobs go on; `step` then runs one step, for a teacher who
walks through `schedule()` with a class::

    engine = AsyncLLM(lambda: LLMEngine(EngineConfig(model="smollm2-135m-instruct")))
    async for output in engine.generate("The capital of France is", SamplingParams(), "request 1"):
        print(output.outputs[0].text)

vLLM V1: `vllm/v1/engine/async_llm.py` and `core_client.py`; there the engine is another process, and the two
queues are ZeroMQ sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from minivllm.engine import LLMEngine
from minivllm.engine_loop import EngineLoop
from minivllm.inputs import Request
from minivllm.outputs import RequestOutput
from minivllm.prompts import Prompt
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.server.output_stream import OutputStream

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
MakeEngine = Callable[[], LLMEngine]
MakeRequest = Callable[[LLMEngine], Request]
"""Makes a request in the engine's thread, where the tokenizer may be used: for chat templates."""
OnFinished = Callable[[RequestOutput], None]


class EngineClosedError(RuntimeError):
    """The engine takes no requests any more: it was shut down, or its thread has died."""


class RequestAbortedError(RuntimeError):
    """A request was ended by `AsyncLLM.abort` while its reader still waited for outputs."""


class AsyncLLM:
    """An engine that serves the coroutines of one event loop.

    The engine is made in the thread that runs it, and not before. On a CPU this is worth a fifth of the
    tokens per second: a thread that computes in parallel gets OpenMP helpers of its own and keeps them, and
    once the process has more such threads than cores (2 cores: one that loaded the weights and its helper,
    one that makes the steps and its helper), GNU's OpenMP no longer lets a thread watch for the next product,
    but puts it to sleep after each.

    Args:
        make_engine: makes the engine, which is its thread's alone; `shutdown` shuts it down. The engine's
            trace is told about the steps in that thread. What `make_engine` raises is raised here.
        on_finished: called in the engine's thread with the last output of each request that is not aborted.
    """

    def __init__(self, make_engine: MakeEngine, on_finished: OnFinished = lambda output: None) -> None:
        self._on_finished = on_finished
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_open = True  # read and changed with the lock held: no job comes after the last was done
        self._lock = threading.Lock()
        # The event loop's: which stream reads which request.
        self._streams: dict[str, OutputStream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        # The engine's thread's: requests of ours in the engine, outputs of the present step, two switches.
        self._running: set[str] = set()
        self._outbox: list[RequestOutput] = []
        self._is_paused = False
        self._is_closing = False
        self._died_of: BaseException | None = None
        made: Future[None] = Future()
        begin = partial(self._begin, make_engine, made)
        self._thread = threading.Thread(target=begin, name="minivllm-engine", daemon=True)
        self._thread.start()
        made.result()

    # -- the event loop's side ----------------------------------------------------------------------

    @property
    def engine(self) -> LLMEngine:
        """The engine. Only what never changes may be read from outside its thread; see `call`."""
        return self.engine_loop.engine

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self._is_open

    @property
    def errored(self) -> bool:
        """Whether the engine's thread has died of an error. An error in a step does not kill it."""
        return self._died_of is not None

    @property
    def num_unfinished(self) -> int:
        """Requests that have been submitted and are still read."""
        return len(self._streams)

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams, request_id: str, priority: int = 0
    ) -> AsyncIterator[RequestOutput]:
        """Yield the outputs of one request, as its `output_kind` wants them; leaving early aborts it.

        Raises:
            ValueError, TypeError: the request is wrong, as in `LLMEngine.add_request`.
            EngineClosedError: the engine is shut down. RequestAbortedError: `abort` was called.
            Exception: whatever the step raised that ended this request.
        """
        request = Request(prompt, sampling_params, priority=priority)
        with await self.submit({request_id: lambda engine: request}, sampling_params.output_kind) as stream:
            async for output in stream:
                yield output

    async def submit(self, requests: Mapping[str, MakeRequest], kind: RequestOutputKind) -> OutputStream:
        """Queue requests: all of them, or none if one is wrong. Close the stream that is returned.

        Args:
            requests: by request id.
            kind: the `output_kind` of all of them.

        Raises:
            As `generate`, and before any of them has run.
        """
        if taken := self._streams.keys() & requests.keys():
            raise ValueError(f"request_id {min(taken)!r} is in use by an unfinished request.")
        stream = OutputStream(requests, kind is RequestOutputKind.DELTA, self._leave)
        self._streams |= dict.fromkeys(requests, stream)
        try:
            await self.call(partial(self._add, requests))
        except BaseException:  # cancelled: it may be in the engine by now
            stream.close()
            raise
        return stream

    async def call(self, function: Callable[[LLMEngine], Result]) -> Result:
        """Run `function(engine)` in the engine's thread, between two steps; -> what it returns or raises."""
        self._loop = asyncio.get_running_loop()
        future: Future[Result] = Future()
        with self._lock:
            if not self._is_open:
                raise EngineClosedError("the engine is shut down.")
            self._jobs.put(partial(self._do, function, future))
        return await asyncio.wrap_future(future)

    async def abort(self, request_id: str) -> None:
        """End a request, and those submitted with it; the reader gets a RequestAbortedError.

        Nothing happens if there is none of that name.
        """
        if (stream := self._streams.get(request_id)) is not None:
            names = stream.unfinished
            await self.call(lambda engine: self._drop(names))
            self._fail(names, RequestAbortedError(f"request {request_id!r} was aborted."))

    async def pause(self) -> None:
        """Make no more steps until `resume`; requests are still taken, and wait."""
        await self.call(lambda engine: self._set_paused(True))

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self.call(lambda engine: self._set_paused(False))

    async def is_paused(self) -> bool:
        """Whether the engine makes no steps of its own."""
        return await self.call(lambda engine: self._is_paused)

    async def step(self) -> bool:
        """Run exactly one step of a paused engine; -> False, and no step, if no request is unfinished.

        Raises:
            ValueError: the engine is not paused: which step this one was could not be said.
        """
        return await self.call(self._step_if_paused)

    def close(self) -> None:
        """Take no more requests, and end the thread after the step it is in; does not wait for that.

        Readers get an EngineClosedError. May be called twice.
        """
        self._jobs.put(self._close)

    def shutdown(self) -> None:
        """`close`, wait for the thread, and end the workers; may be called twice."""
        self.close()
        self._thread.join()
        self.engine.shutdown()

    def _leave(self, request_ids: list[str]) -> None:
        """A reader has left, with these requests unfinished; the rest of its requests are over."""
        self._streams = {name: each for name, each in self._streams.items() if name not in request_ids}
        if request_ids:
            self._jobs.put(partial(self._drop, request_ids))

    def _receive(self, outputs: list[RequestOutput]) -> None:
        """What came of a step, in the event loop's thread; a reader may have left meanwhile."""
        for output in outputs:
            if output.request_id in self._streams:
                self._streams[output.request_id].put(output)
                if output.finished:
                    del self._streams[output.request_id]

    def _fail(self, request_ids: Iterable[str], error: BaseException) -> None:
        for request_id in request_ids:
            if request_id in self._streams:
                self._streams.pop(request_id).fail(error)

    # -- the engine's thread ------------------------------------------------------------------------

    def _begin(self, make_engine: MakeEngine, made: Future[None]) -> None:
        """The thread, to its end; `made` is told when the engine is ready, or why there is none."""
        try:
            self.engine_loop = EngineLoop(make_engine())
        except BaseException as error:
            made.set_exception(error)
        else:
            made.set_result(None)
            self._run()

    def _run(self) -> None:
        """Jobs, one step, jobs, one step, ... until a job closes the engine."""
        error: BaseException = EngineClosedError("the engine was shut down.")
        try:
            while not self._is_closing:
                jobs = self._take_jobs()
                with self.engine_loop.turn():
                    for job in jobs:
                        job()
                    if not self._is_paused and not self._is_closing:
                        self._step()
        except BaseException as died:
            logger.exception("the engine's thread has died")
            self._died_of = error = died
        finally:
            with self._lock:
                self._is_open, self._is_closing = False, True
            for job in [partial(self._drop, list(self._running)), *self._take_waiting()]:
                with contextlib.suppress(Exception):  # what the thread died of may strike again
                    job()
            self._post(self._fail_all, error)

    def _take_jobs(self) -> list[Callable[[], None]]:
        """All jobs that wait; with nothing to step for, wait for the first."""
        idle = self._is_paused or not self.engine.has_unfinished_requests()
        return [*([self._jobs.get()] if idle else []), *self._take_waiting()]

    def _take_waiting(self) -> list[Callable[[], None]]:
        # No other thread takes jobs, so those that are counted are there.
        return [self._jobs.get_nowait() for _ in range(self._jobs.qsize())]

    def _do(self, function: Callable[[LLMEngine], Result], future: Future[Result]) -> None:
        """One job of `call`. If its caller is gone by now, it is not done at all."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            if self._is_closing:
                raise EngineClosedError("the engine is shut down.")
            future.set_result(function(self.engine))
        except Exception as error:
            future.set_exception(error)

    def _add(self, requests: Mapping[str, MakeRequest], engine: LLMEngine) -> None:
        """Check all, then queue all."""
        groups = [engine.make_group(name, make(engine)) for name, make in requests.items()]
        for group in groups:
            self.engine_loop.submit(group, self._outbox.append)
            self._running.add(group.request_id)

    def _drop(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.engine_loop.drop(request_id)
            self._running.discard(request_id)

    def _step(self) -> None:
        """One step, if there is anything to do, and its outputs on their way."""
        if not self.engine.has_unfinished_requests():
            return
        try:
            self.engine_loop.deliver(self.engine.step())
        except Exception as error:  # the engine has dropped every request, and is usable again
            logger.exception("a step failed; its requests end with this error")
            lost = list(self._running)
            self._drop(lost)
            self._post(self._fail, lost, error)
            self.engine.executor.check_health()  # a worker that is gone ends this thread
        outputs = self._outbox.copy()
        self._outbox.clear()
        for output in outputs:
            if output.finished:
                self._running.discard(output.request_id)
                self._on_finished(output)
        if outputs:
            self._post(self._receive, outputs)

    def _step_if_paused(self, engine: LLMEngine) -> bool:
        if not self._is_paused:
            raise ValueError("the engine runs by itself; pause it before you step.")
        has_work = engine.has_unfinished_requests()
        self._step()
        return has_work

    def _set_paused(self, paused: bool) -> None:
        self._is_paused = paused

    def _close(self) -> None:
        self._is_closing = True

    def _fail_all(self, error: BaseException) -> None:
        self._fail(list(self._streams), error)

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Run `function` in the event loop's thread, if there is an event loop left."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed: no reader is left
                self._loop.call_soon_threadsafe(function, *arguments)

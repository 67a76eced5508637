"""The loop around `LLMEngine.step()`, shared by all front ends: it steps the engine and hands out outputs.

Several callers may wait for outputs at once: two open streams, `generate` inside a `for` over a stream,
requests of several threads. The callers share one engine, so a step which one of them runs is a step for
all of them. Each caller has a mailbox; the caller that runs a step puts each output into the mailbox of the
caller which asked for it, and each caller reads its own mail::

    thread 1   outputs_of([a])   turn: step -> mail a, b   reads a   turn: step -> mail a, b   reads a
    thread 2   outputs_of([b])        waits in line        reads b        waits in line        reads b

One caller at a time has the turn, and only that caller may touch the engine. The line is first come, first
served: without a line, the thread that has just made a step would be quicker than the waiting ones, time and
again.

No request stays behind, however a caller leaves: with all its outputs, by closing its generator, with an
error, or by Ctrl-C at any line. The clean-up is registered before the first request is queued, and registered
twice: an interrupt may cut the first clean-up short, and then the second finishes its work. An interrupted
update leaves a state that cannot be trusted; `LLMEngine.recover` drops that state.

vLLM V1: `vllm/v1/engine/core.py` (`run_busy_loop`) and `llm_engine.py`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from minivllm.engine import LLMEngine
from minivllm.inputs import Request
from minivllm.outputs import RequestOutput
from minivllm.sequence import SequenceGroup


class EngineLoop:
    """Steps one engine for any number of callers, in any number of threads."""

    def __init__(self, engine: LLMEngine) -> None:
        self.engine = engine
        self._num_requests = 0  # so far; the next request's id
        self._mailboxes: dict[str, Callable[[RequestOutput], None]] = {}
        self._left: deque[str] = deque()  # requests to abort at the next turn
        self._line: deque[int] = deque()  # threads; the first has the turn
        self._line_moved = threading.Condition()

    def make_groups(self, requests: Iterable[Request]) -> list[SequenceGroup]:
        """Check requests and name them "0", "1", ... in their order; nothing is queued.

        Raises:
            ValueError, TypeError: one of them is wrong.
        """
        with self.turn():  # tokenizers are not to be used by two threads at once
            groups = [
                self.engine.make_group(str(number), request)
                for number, request in enumerate(requests, self._num_requests)
            ]
            self._num_requests += len(groups)
        return groups

    def outputs_of(self, groups: list[SequenceGroup]) -> Iterator[RequestOutput]:
        """Queue groups from `make_groups`, then step until they are finished.

        Each output is yielded before the next step is run, so a caller that prints shows a token as soon as
        the token is made.

        Raises:
            RuntimeError: a step that another caller ran has failed, and these requests were dropped with it.
        """
        mail: deque[RequestOutput] = deque()
        unfinished = dict.fromkeys(group.request_id for group in groups)  # in order
        with ExitStack() as outer, ExitStack() as inner:
            for stack in (outer, inner):
                stack.callback(self._leave, unfinished)
            with self.turn():
                for group in groups:
                    self.submit(group, mail.append)
            while unfinished:
                with self.turn():
                    if not mail:
                        self._check_present(unfinished)
                        self.deliver(self.engine.step())
                while mail:
                    output = mail.popleft()
                    if output.finished:
                        del unfinished[output.request_id]
                    yield output

    # The next three are for the caller that has the turn.

    def submit(self, group: SequenceGroup, mailbox: Callable[[RequestOutput], None]) -> None:
        """Queue a group; `deliver` will hand each of its outputs to `mailbox`."""
        self._mailboxes[group.request_id] = mailbox
        self.engine.add_group(group)

    def deliver(self, outputs: list[RequestOutput]) -> None:
        """Put each output into the mailbox of its request; an output without a mailbox is dropped."""
        for output in outputs:
            if output.request_id in self._mailboxes:
                self._mailboxes[output.request_id](output)
            if output.finished:
                self._mailboxes.pop(output.request_id, None)

    def drop(self, request_id: str) -> None:
        """Abort a request, if it is still there, and take down its mailbox."""
        self._mailboxes.pop(request_id, None)
        self.engine.abort_request(request_id)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait in line; the body of the `with` then has the engine to itself."""
        me = threading.get_ident()
        with ExitStack() as outer, ExitStack() as inner:
            for stack in (outer, inner):
                stack.callback(self._leave_line, me)
            with self._line_moved:
                self._line.append(me)
                self._line_moved.wait_for(lambda: self._line[0] == me)
            self._abort_left()
            yield

    def _leave_line(self, me: int) -> None:
        with self._line_moved:
            if me in self._line:
                self._line.remove(me)
            self._line_moved.notify_all()

    def _leave(self, request_ids: Iterable[str]) -> None:
        """Abort what a caller leaves unfinished, now or as soon as possible.

        Python closes a forgotten generator wherever its thread happens to be, even in the middle of a step
        that the same thread runs for another caller: the generator's requests then wait for the next turn.
        """
        self._left.extend(name for name in request_ids if name in self._mailboxes)
        if self._left and threading.get_ident() not in self._line:
            with self.turn():
                pass

    def _abort_left(self) -> None:
        self.engine.recover()
        while self._left:
            self.drop(self._left[0])
            self._left.popleft()

    def _check_present(self, request_ids: dict[str, None]) -> None:
        """Raise if a request is gone: its caller would otherwise step an idle engine for ever."""
        lost = request_ids.keys() - self.engine.scheduler.groups.keys()
        if lost:
            raise RuntimeError(
                f"requests {', '.join(sorted(lost, key=int))} are no longer in the engine: they were aborted "
                f"or dropped with a step of another caller that failed."
            )

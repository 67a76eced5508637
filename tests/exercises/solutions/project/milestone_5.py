"""Milestone 5: paging. A request holds as many blocks as it has tokens for; the last one gives way."""

from collections import deque
from dataclasses import dataclass, field

from minivllm.course.project import Limits, Model, Row


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(eq=False)
class Request:
    """A request and its block table."""

    tokens: list[int]
    num_wanted: int  # tokens, the prompt included
    blocks: list[int] = field(default_factory=list)
    computed: int = 0

    def row(self, size: int) -> Row:
        """What is not computed yet, through the block table."""
        slots = [self.blocks[p // size] * size + p % size for p in range(len(self.tokens))]
        return Row(self.tokens[self.computed :], slots)


class Engine:
    """The oldest requests keep their blocks, so one of them always gets on."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.num_blocks = model.num_slots // limits.block_size
        self.free = list(range(self.num_blocks))

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """The generated tokens of each prompt."""
        requests = [Request(list(p), len(p) + n) for p, n in zip(prompts, max_tokens, strict=True)]
        for request in requests:
            needed = cdiv(request.num_wanted - 1, self.limits.block_size)
            if needed > self.num_blocks:
                raise ValueError(f"a request needs {needed} blocks, and memory has {self.num_blocks}.")
        waiting, running = deque(requests), []
        while waiting or running:
            self._schedule(waiting, running)
            self._step(running)
            for request in [each for each in running if len(each.tokens) == each.num_wanted]:
                running.remove(request)
                self._release(request)
        return [request.tokens[len(prompt) :] for request, prompt in zip(requests, prompts, strict=True)]

    def _schedule(self, waiting: deque[Request], running: list[Request]) -> None:
        """Give every running request its blocks, then let others in."""
        preempted, index = False, 0
        while index < len(running):
            if self._fits(running[index]):
                index += 1
            else:
                victim = running.pop()
                self._release(victim)
                waiting.appendleft(victim)
                preempted = True
        while waiting and len(running) < self.limits.max_num_seqs and not preempted:
            if not self._fits(waiting[0]):
                break
            running.append(waiting.popleft())

    def _fits(self, request: Request) -> bool:
        """Take the blocks for all tokens of a request, or none."""
        needed = cdiv(len(request.tokens), self.limits.block_size) - len(request.blocks)
        if needed > len(self.free):
            return False
        for _ in range(needed):
            request.blocks.append(self.free.pop())
        return True

    def _release(self, request: Request) -> None:
        self.free += request.blocks
        request.blocks, request.computed = [], 0

    def _step(self, running: list[Request]) -> None:
        next_tokens = self.model.forward([request.row(self.limits.block_size) for request in running])
        for request, token in zip(running, next_tokens, strict=True):
            request.computed = len(request.tokens)
            request.tokens.append(token)

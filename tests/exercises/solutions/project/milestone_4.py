"""Milestone 4: continuous batching. A seat that becomes free is taken in the following call."""

from collections import deque
from dataclasses import dataclass

from minivllm.course.project import Limits, Model, Row


@dataclass(eq=False)
class Request:
    """A request, and where its part of memory begins."""

    tokens: list[int]
    num_wanted: int  # tokens, the prompt included
    seat: int = 0
    computed: int = 0


class Engine:
    """Seat s holds the slots from s * max_model_len on."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """The generated tokens of each prompt."""
        requests = [Request(list(p), len(p) + n) for p, n in zip(prompts, max_tokens, strict=True)]
        waiting, running = deque(requests), []
        num_seats = min(self.limits.max_num_seqs, self.model.num_slots // self.limits.max_model_len)
        seats = list(range(num_seats))
        while waiting or running:
            while waiting and seats:
                running.append(waiting.popleft())
                running[-1].seat = seats.pop()
            self._step(running)
            seats += [each.seat for each in running if len(each.tokens) == each.num_wanted]
            running = [each for each in running if len(each.tokens) < each.num_wanted]
        return [request.tokens[len(prompt) :] for request, prompt in zip(requests, prompts, strict=True)]

    def _step(self, running: list[Request]) -> None:
        next_tokens = self.model.forward([self._row(request) for request in running])
        for request, token in zip(running, next_tokens, strict=True):
            request.computed = len(request.tokens)
            request.tokens.append(token)

    def _row(self, request: Request) -> Row:
        first = request.seat * self.limits.max_model_len
        return Row(request.tokens[request.computed :], range(first, first + len(request.tokens)))

"""Milestone 3: static batches. Some requests share their calls; the next batch begins when all are finished."""

from dataclasses import dataclass

from minivllm.course.project import Limits, Model, Row


@dataclass(eq=False)
class Request:
    """A request, and where its part of memory begins."""

    tokens: list[int]
    num_wanted: int  # tokens, the prompt included
    first_slot: int = 0
    computed: int = 0

    def row(self) -> Row:
        """What is not computed yet."""
        return Row(self.tokens[self.computed :], range(self.first_slot, self.first_slot + len(self.tokens)))


class Engine:
    """One batch after the other; seat s holds the slots from s * max_model_len on."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model
        self.limits = limits

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """The generated tokens of each prompt."""
        requests = [Request(list(p), len(p) + n) for p, n in zip(prompts, max_tokens, strict=True)]
        size = min(self.limits.max_num_seqs, self.model.num_slots // self.limits.max_model_len)
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            for seat, request in enumerate(batch):
                request.first_slot = seat * self.limits.max_model_len
            while running := [each for each in batch if len(each.tokens) < each.num_wanted]:
                self._step(running)
        return [request.tokens[len(prompt) :] for request, prompt in zip(requests, prompts, strict=True)]

    def _step(self, running: list[Request]) -> None:
        next_tokens = self.model.forward([request.row() for request in running])
        for request, token in zip(running, next_tokens, strict=True):
            request.computed = len(request.tokens)
            request.tokens.append(token)

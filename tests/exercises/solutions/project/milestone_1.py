"""Milestone 1: a loop. The whole text is computed anew for every token."""

from minivllm.course.project import Limits, Model, Row


class Engine:
    """One prompt after the other, without a KV cache."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.model = model

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[list[int]]:
        """The generated tokens of each prompt."""
        return [
            self._complete(list(prompt), count) for prompt, count in zip(prompts, max_tokens, strict=True)
        ]

    def _complete(self, tokens: list[int], count: int) -> list[int]:
        for _ in range(count):
            tokens += self.model.forward([Row(tokens, range(len(tokens)))])
        return tokens[-count:]

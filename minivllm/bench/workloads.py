"""Workloads: which prompts, how many output tokens, and when they arrive. Seeded, and without a model.

A benchmark is only as good as its requests. Output lengths are what makes serving hard: they are not known in
advance, and they differ by a factor of a hundred. These are the shapes used here::

    uniform        prompts U(16, 256), outputs U(16, 256), random tokens           the throughput workload
    fixed          all the same: --input-len and --output-len                      a batch of constant size
    sharegpt-like  gamma, mean 161.31 in, 337.99 out                               the paper's chat traffic
    alpaca-like    gamma, mean 19.31 in, 58.45 out                                 the paper's instructions
    shared-prefix  one common prefix, then a suffix of its own for each            system prompts, few-shot
    sharegpt       your own file in ShareGPT format, with vLLM's filters

Example: the first request of the default workload::

    >>> request = uniform_requests(num_prompts=32, vocab_size=49152, seed=0)[0]
    >>> len(request.prompt_token_ids), request.output_len
    (232, 114)

All 32 together have 5,310 prompt and 4,259 output tokens. Lengths, token ids and arrival times come from
three random streams, so that another vocabulary or another request rate leaves the lengths alone.

Paper: section 6.1 and figure 11 (the two data sets). vLLM V1: `vllm/benchmarks/datasets.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

Lengths = list[tuple[int, int]]  # (prompt tokens, output tokens) of each request


@dataclass(frozen=True)
class BenchRequest:
    """One request: the prompt as token ids, and exactly how many tokens to generate.

    Token ids and not text, so that no backend's clock includes tokenization. `arrival_time` counts seconds
    from the start of the run; 0 means "waiting from the beginning".
    """

    prompt_token_ids: tuple[int, ...]
    output_len: int
    arrival_time: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens together."""
        return len(self.prompt_token_ids) + self.output_len


@dataclass(frozen=True)
class Gamma:
    """A gamma distribution by its mean and its coefficient of variation (standard deviation / mean)."""

    mean: float
    cv: float

    def draw(self, rng: random.Random) -> float:
        """One sample. Shape k = 1 / cv^2 and scale mean / k; cv = 1 is the exponential distribution."""
        shape = self.cv**-2
        return rng.gammavariate(shape, self.mean / shape)


@dataclass(frozen=True)
class LengthModel:
    """Distributions of prompt and output lengths; requests of `max_total` tokens or more are drawn again."""

    prompt: Gamma
    output: Gamma
    max_total: int = 2048


# The means are the paper's. The output's cv of 0.88 was fitted to the paper's figure 2: in steady state Orca
# Max holds 20.4% of 15,728 slots in 7 requests = 458 tokens each, 13.3% still to come = 299, so the
# size-biased mean output is 598 = mean * (1 + cv^2). The other three are guesses of the same order.
SHAREGPT_LIKE = LengthModel(prompt=Gamma(161.31, 1.2), output=Gamma(337.99, 0.88))
ALPACA_LIKE = LengthModel(prompt=Gamma(19.31, 0.7), output=Gamma(58.45, 1.0))


def draw_lengths(model: LengthModel, num_prompts: int, seed: int = 0) -> Lengths:
    """`num_prompts` pairs of lengths, each at least 1, each sum below `model.max_total`."""
    rng = random.Random(f"{seed}/lengths")
    lengths: Lengths = []
    while len(lengths) < num_prompts:
        prompt_len = max(1, round(model.prompt.draw(rng)))
        output_len = max(1, round(model.output.draw(rng)))
        if prompt_len + output_len < model.max_total:
            lengths.append((prompt_len, output_len))
    return lengths


def random_tokens(count: int, vocab_size: int, rng: random.Random) -> tuple[int, ...]:
    """`count` token ids, each equally likely. Nonsense to read, and for speed as good as any text."""
    return tuple(rng.randrange(vocab_size) for _ in range(count))


def requests_of_lengths(
    lengths: Lengths, vocab_size: int, seed: int, prefix_len: int = 0
) -> list[BenchRequest]:
    """Random prompts of the given lengths, behind `prefix_len` tokens that all of them share."""
    rng = random.Random(f"{seed}/tokens")
    prefix = random_tokens(prefix_len, vocab_size, rng)
    return [
        BenchRequest(prefix + random_tokens(inputs, vocab_size, rng), outputs) for inputs, outputs in lengths
    ]


def uniform_requests(num_prompts: int = 32, vocab_size: int = 49152, seed: int = 0) -> list[BenchRequest]:
    """Prompt and output lengths uniform on [16, 256]."""
    rng = random.Random(seed)
    lengths = [(rng.randint(16, 256), rng.randint(16, 256)) for _ in range(num_prompts)]
    return requests_of_lengths(lengths, vocab_size, seed)


@dataclass(frozen=True)
class Shape:
    """How many requests, and their lengths in tokens as far as a workload lets them be chosen."""

    num_prompts: int
    input_len: int = 128
    output_len: int = 128
    prefix_len: int = 0

    @property
    def lengths(self) -> Lengths:
        """All requests of one size: they start and end together, so the batch stays at `num_prompts`."""
        return [(self.input_len, self.output_len)] * self.num_prompts


SYNTHETIC: dict[str, Callable[[Shape, int, int], list[BenchRequest]]] = {
    "uniform": lambda s, vocab, seed: uniform_requests(s.num_prompts, vocab, seed),
    "fixed": lambda s, vocab, seed: requests_of_lengths(s.lengths, vocab, seed),
    "sharegpt-like": lambda s, vocab, seed: requests_of_lengths(
        draw_lengths(SHAREGPT_LIKE, s.num_prompts, seed), vocab, seed
    ),
    "alpaca-like": lambda s, vocab, seed: requests_of_lengths(
        draw_lengths(ALPACA_LIKE, s.num_prompts, seed), vocab, seed
    ),
    "shared-prefix": lambda s, vocab, seed: requests_of_lengths(s.lengths, vocab, seed, s.prefix_len),
}
"""(shape, vocabulary size, seed) -> requests, for each workload that needs no file."""


def load_sharegpt(
    path: Path, tokenize: Callable[[str], list[int]], num_prompts: int, seed: int = 0
) -> list[BenchRequest]:
    """Real conversations from a file of your own: the first turn is the prompt, the second its answer.

    The file is a JSON list of `{"conversations": [{"from": ..., "value": text}, ...]}`. vLLM's filters:
    dropped are prompts or answers under 4 tokens, prompts over 1,024, and sums over 2,048.

    Raises:
        ValueError: the file is in another format, or holds fewer than `num_prompts` that pass the filters.
    """
    try:
        conversations = [entry["conversations"] for entry in json.loads(path.read_text(encoding="utf-8"))]
        pairs = [(turns[0]["value"], turns[1]["value"]) for turns in conversations if len(turns) >= 2]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not in ShareGPT format, a JSON list of "
            f'{{"conversations": [{{"from": "human", "value": "..."}}, ...]}} ({error!r}).'
        ) from error
    random.Random(seed).shuffle(pairs)
    requests: list[BenchRequest] = []
    for prompt, answer in pairs:  # tokenized one by one: the public file has 90,000, few are needed
        if len(requests) == num_prompts:
            break
        request = BenchRequest(tuple(tokenize(prompt)), len(tokenize(answer)))
        prompt_len = len(request.prompt_token_ids)
        if min(prompt_len, request.output_len) >= 4 and prompt_len <= 1024 and request.num_tokens <= 2048:
            requests.append(request)
    if len(requests) < num_prompts:
        raise ValueError(
            f"{path} has {len(requests)} conversations that pass the filters, {num_prompts} were asked for: "
            f"lower --num-prompts."
        )
    return requests


def with_arrivals(
    requests: list[BenchRequest], request_rate: float, burstiness: float = 1.0, seed: int = 0
) -> list[BenchRequest]:
    """The same requests, `request_rate` of them arriving per second on average.

    Gaps are gamma with shape `burstiness`: 1 is a Poisson process, below 1 arrivals bunch, above 1 they are
    regular. An infinite rate puts all arrivals at 0.

    Raises:
        ValueError: a rate or a burstiness that is not positive.
    """
    if request_rate <= 0 or burstiness <= 0:
        raise ValueError(
            f"request_rate and burstiness must be positive, got {request_rate} and {burstiness}."
        )
    rng = random.Random(f"{seed}/arrivals")
    gap = Gamma(mean=1.0 / request_rate, cv=burstiness**-0.5)
    gaps = [0.0 if math.isinf(request_rate) else gap.draw(rng) for _ in requests]
    return [
        replace(request, arrival_time=time)
        for request, time in zip(requests, itertools.accumulate(gaps), strict=True)
    ]

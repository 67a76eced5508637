"""What comes back: to the user (`RequestOutput`), and from one step of the model (`SequenceOutput`).

Everything here is frozen data without behaviour, in which a step hands its results upward::

    RequestOutput            one request
      .prompt, .prompt_token_ids, .prompt_logprobs
      .outputs[i]            CompletionOutput: one of n completions, or one of the beams, best first
        .text, .token_ids, .finish_reason ("stop" | "length" | "abort" | None while running)
        .stop_reason         the stop string or stop token id; None for the end-of-sequence token
        .logprobs[t]         {token_id: Logprob} for the token at position t: k entries, or k + 1 when the
                             sampled token is not among the k most likely

vLLM V1: `vllm/outputs.py`, `vllm/logprobs.py`, `vllm/v1/outputs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logprob:
    """One token's natural log-probability, its rank (1 is the most likely) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(frozen=True)
class RequestMetrics:
    """When things happened to a request, in seconds of `time.perf_counter()`; None: not yet.

    `num_output_tokens` is the length of the longest completion: n completions are written side by side.
    """

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_output_tokens: int = 0

    @property
    def time_to_first_token(self) -> float | None:
        """TTFT: seconds from arrival to the first sampled token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time

    @property
    def time_per_output_token(self) -> float | None:
        """TPOT: seconds per token after the first. None before the end, or with a single token."""
        if self.finished_time is None or self.first_token_time is None or self.num_output_tokens < 2:
            return None
        return (self.finished_time - self.first_token_time) / (self.num_output_tokens - 1)

    @property
    def normalized_latency(self) -> float | None:
        """The paper's measure: end-to-end seconds divided by the number of output tokens."""
        if self.finished_time is None or self.num_output_tokens == 0:
            return None
        return (self.finished_time - self.arrival_time) / self.num_output_tokens


@dataclass(frozen=True)
class CompletionOutput:
    """One completion of a prompt. `index` is its place among the n asked for."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        """Whether this completion is done."""
        return self.finish_reason is not None


@dataclass(frozen=True)
class RequestOutput:
    """What there is to see of one request, at the end or on the way: `output_kind` says which."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one position: the token that stands there, and the most likely ones.

    `top` holds (token id, log-probability) in falling order; their ranks are 1, 2, 3, ...
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class SequenceOutput:
    """What one step of the model found out about one scheduled sequence.

    `token_ids` has one run of tokens per sample, and a run is one token long unless drafted tokens were
    accepted with it. There is no run while a prompt is still being computed, n when the prompt of a request
    for n completions is done, else one::

        ()              the prompt goes on          ((5,),)          decoding: the next token is 5
        ((5,), (8,))    n = 2, the first tokens     ((5, 9, 2),)     two drafts accepted, and one token more

    `logprobs` has the same shape, if log-probabilities were asked for. `candidates` replaces both for a beam:
    the most likely (token id, log-probability), best first. `prompt_logprobs` covers the prompt positions
    start + 1 .. start + num_tokens of this step.
    """

    token_ids: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[tuple[TokenLogprobs, ...], ...] | None = None
    candidates: tuple[tuple[int, float], ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

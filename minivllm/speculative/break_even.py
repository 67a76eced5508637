"""When drafts pay: what a step with drafts costs, and what it yields. Arithmetic, no model.

A draft is accepted with probability a (taken as the same for each position). With k drafts a step yields
the accepted ones and one token more, so on average

    1 + a + a^2 + ... + a^k  tokens       k = 4, a = 0.5: 1.94       a = 0.8: 3.36      a = 1: 5

and it costs `cost` times as much as a step without drafts: the longer a step, the more has to be accepted.
The acceptance at which both are equal is the break-even::

    cost of a step with 4 drafts     1.0    1.25    1.5    2.0    3.0    5.0
    break-even acceptance              0    0.20   0.34   0.52   0.74    1.0

A draft model adds k + 1 passes of its own, each `ratio` times a step of the model. If every draft is
accepted, k + 1 tokens must still pay for all of it, which bounds the ratio (`largest_ratio`)::

    5 tokens > 5 ratio + cost          cost 2.0: ratio below 0.6 at an acceptance of 1, and below 0.3 at 0.8

Paper: section 3.1 and theorem 3.8 of arXiv 2211.17192, where a is called alpha, k gamma and the ratio c.
vLLM V1: the log line of `vllm/v1/spec_decode/metrics.py` has what was measured; it computes no break-even.
"""

from __future__ import annotations


def tokens_per_step(acceptance: float, num_drafts: int) -> float:
    """Tokens that a step yields on average, from 1 to `num_drafts` + 1."""
    return sum(acceptance**i for i in range(num_drafts + 1))


def speedup(acceptance: float, num_drafts: int, cost: float, ratio: float = 0.0) -> float:
    """How many times as many tokens per second as without drafts.

    Args:
        acceptance: of one draft, 0 to 1.
        num_drafts: k.
        cost: time of a step with k drafts, in steps without drafts.
        ratio: time of one pass of the draft model, in the same unit; 0: drafts cost nothing.
    """
    return tokens_per_step(acceptance, num_drafts) / (cost + (num_drafts + 1) * ratio)


def break_even(num_drafts: int, cost: float, ratio: float = 0.0) -> float:
    """The acceptance at which drafts neither gain nor lose; `inf` if even 1 is too little."""
    if speedup(1.0, num_drafts, cost, ratio) < 1.0:
        return float("inf")
    low, high = 0.0, 1.0
    for _ in range(50):  # halving: 2**-50 is less than a float can tell
        middle = (low + high) / 2
        low, high = (middle, high) if speedup(middle, num_drafts, cost, ratio) < 1.0 else (low, middle)
    return high


def largest_ratio(acceptance: float, num_drafts: int, cost: float) -> float:
    """The dearest draft model that pays at this acceptance, in steps of the model; negative: none does."""
    return (tokens_per_step(acceptance, num_drafts) - cost) / (num_drafts + 1)

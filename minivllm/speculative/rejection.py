"""The rule of the paper for one draft: accept it with probability min(1, p/q), else draw from what is left.

The model wants a token distributed as p. A cheaper guesser drew x from its own distribution q. Then

    accept x with probability min(1, p(x) / q(x));   otherwise draw from max(0, p - q), made to sum up to 1

gives a token that is distributed as p exactly, whatever q is. Two tokens, p = (0.7, 0.3), q = (0.4, 0.6)::

    draft 0 (0.4)   p/q > 1:   accepted                       0 with 0.4
    draft 1 (0.6)   p/q = 0.5: accepted half of the time      1 with 0.3
                    rejected: max(0, p - q) = (0.3, 0)        0 with 0.3      in all: 0.7 and 0.3

A draft survives with probability sum(min(p, q)): the share that the two distributions have in common.

The engine has no use for q. An n-gram draft is certain: q is 1 at x. Then min(1, p/q) is p(x), and max(0, p
- q) is p without x. Drawing y from p, and accepting x if y = x, is the same thing in one draw: y is x with
probability p(x), and otherwise distributed as p without x. A draft model's draft is a function of seed and
position, hence certain as well once these are given. That is `verification.accept`, and vLLM V1 treats
n-gram drafts in this way.

Paper: section 2.3 and appendix A.1 of arXiv 2211.17192 (the rule and its proof).
vLLM V1: `rejection_sample` in `vllm/v1/sample/rejection_sampler.py`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


def accept_or_redraw(
    p: Sequence[float], q: Sequence[float], draft: int, u_accept: float, u_redraw: float
) -> tuple[int, bool]:
    """The token that follows, and whether it is the draft.

    Args:
        p: probabilities the model gives, over the vocabulary.
        q: probabilities the draft was drawn with; `q[draft]` > 0.
        draft: a token.
        u_accept, u_redraw: numbers drawn evenly from [0, 1).
    """
    if u_accept * q[draft] < p[draft]:
        return draft, True
    sums = list(accumulate(max(0.0, a - b) for a, b in zip(p, q, strict=True)))
    if sums[-1] == 0.0:
        raise ValueError("p and q must each sum up to 1, and q[draft] must not be 0.")
    # A share of the last sum, as it was rounded: even the largest u_redraw finds a token that has mass.
    return bisect_right(sums, u_redraw * sums[-1]), False

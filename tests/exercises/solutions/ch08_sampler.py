"""Chapter 8: the sampler.

One row of logits comes in, one token goes out. Write the draw, the cut that most people use, and one that the
engine does not have yet. V is the size of the vocabulary; token i is index i of a row.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex08a
or, in the notebook, with   %check ex08a.
"""

import torch
from torch import Tensor


def sample(logits: Tensor, temperature: float, u: float) -> int:
    """ex08a. Choose a token from one row of logits.

    Temperature 0 takes the token with the largest logit, the lowest id if several are equal; u is ignored.

    With any other temperature the probabilities are  softmax(logits / temperature).  Add them up in the order of
    the token ids: the token chosen is the first at which the sum reaches u (is equal or above).

    Example, logits [0., 0., 0., 0.], temperature 1:

        token           0      1      2      3
        probability   0.25   0.25   0.25   0.25
        sum           0.25   0.5    0.75   1.0         u = 0.2 -> 0     u = 0.5 -> 1     u = 0.51 -> 2

    Logits can be large: in float32 exp(89) is infinite, and 0.9 / 0.01 is already 90. A forbidden token has the
    logit -inf. It must not be chosen, not even if u = 1 and rounding leaves the sum of all probabilities below 1.

    Args:
        logits: (V,) float32. At least one is finite. Not changed.
        temperature: 0, or 0.01 and more.
        u: above 0, at most 1.
    """
    # BEGIN SOLUTION ex08a
    from minivllm.sampler import invert_cdf, most_likely

    if temperature == 0:
        return most_likely(logits[None])[0]
    probs = (logits / temperature).softmax(dim=-1)  # (V,)
    return int(invert_cdf(probs[None], torch.tensor([[u]])))
    # END SOLUTION


def top_p(probs: Tensor, p: float) -> Tensor:
    """ex08b. Keep the likeliest tokens that have at least probability p together, as few of them as possible.

    In other words: go from the likeliest token down and stop as soon as the sum has reached p. The token that
    crosses p is kept; if the sum reaches p exactly, nothing more is kept. So the likeliest token is kept in any
    case. The rest becomes 0, and what is left is divided by its sum, so that it adds up to 1 again.

    Example, p = 0.7:  [0.25, 0.05, 0.4, 0.1, 0.2]  ->  [0.294, 0, 0.471, 0, 0.235]. 0.4 and 0.25 are 0.65
    together, not enough; with 0.2 they are 0.85, and everything is divided by that.

    Ties: of several equally likely tokens at the cut you may keep as many as it takes, any of them, or all of
    them. p = 1 keeps every token, even one with a tiny probability.

    Args:
        probs: (V,) float32, in any order. They add up to 1. Not changed.
        p: above 0, at most 1.

    Returns:
        (V,), each token in its place.
    """
    # BEGIN SOLUTION ex08b
    from minivllm.sampler import kept_tokens_reference

    kept = kept_tokens_reference(probs.tolist(), len(probs), p)
    cut = torch.zeros_like(probs)
    cut[kept] = probs[kept]
    return cut / cut.sum()
    # END SOLUTION


def top_n_sigma(logits: Tensor, n: float) -> Tensor:
    """ex08c. A cut made on the logits: keep the tokens that are at most n standard deviations below the best.

        keep token i if   logits[i] >= max(logits) - n * sigma

    sigma is the standard deviation of the row's logits: the root of the mean squared distance from their mean
    (divide by their number, not by one less). Forbidden tokens, with the logit -inf, are not counted in sigma
    and stay forbidden.

    Example: [2, 4, 4, 4, 5, 5, 7, 9] has mean 5 and sigma 2. With n = 1 the cut is at 9 - 2 = 7:
    [-inf, -inf, -inf, -inf, -inf, -inf, 7, 9]. With n = 2 both fives stay, too.

    Dividing all logits by a temperature divides the distances and sigma alike. So, unlike top_p and min_p, this
    rule keeps the same tokens at every temperature.

    Args:
        logits: (V,) float32. At least one is finite. Not changed.
        n: 0 or more.

    Returns:
        (V,): the logits that are kept, unchanged, and -inf for the others.
    """
    # BEGIN SOLUTION ex08c
    sigma = logits[logits.isfinite()].std(unbiased=False)
    return logits.masked_fill(logits < logits.max() - n * sigma, float("-inf"))
    # END SOLUTION

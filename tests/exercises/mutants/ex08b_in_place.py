# caught by: test_the_probabilities_given_are_left_alone
"""Writes into its input."""


def top_p(probs, p):
    values, order = probs.sort(descending=True)
    before = values.cumsum(dim=0) - values
    probs[order[(before >= p) & (p < 1)]] = 0.0
    return probs.div_(probs.sum())

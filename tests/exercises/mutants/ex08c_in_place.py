# caught by: test_the_logits_given_are_left_alone
"""Writes into its input."""


def top_n_sigma(logits, n):
    sigma = logits[logits.isfinite()].std(unbiased=False)
    return logits.masked_fill_(logits < logits.max() - n * sigma, float("-inf"))

# caught by: test_sigma_is_the_root_of_the_mean_square
"""Divides by one less than the number of logits, as Tensor.std does."""


def top_n_sigma(logits, n):
    sigma = logits[logits.isfinite()].std()
    return logits.masked_fill(logits < logits.max() - n * sigma, float("-inf"))

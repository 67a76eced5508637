# caught by: test_forbidden_tokens_do_not_count
"""Puts 0 in place of -inf before it takes sigma: a vocabulary of zeros."""


def top_n_sigma(logits, n):
    sigma = logits.masked_fill(logits.isinf(), 0.0).std(unbiased=False)
    return logits.masked_fill(logits < logits.max() - n * sigma, float("-inf"))

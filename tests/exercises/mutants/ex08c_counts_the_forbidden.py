# caught by: test_forbidden_tokens_do_not_count
"""Takes -inf into mean and sigma: both are NaN, and nothing is below NaN."""


def top_n_sigma(logits, n):
    lowest = logits.max() - n * logits.std(unbiased=False)
    return logits.masked_fill(logits < lowest, float("-inf"))

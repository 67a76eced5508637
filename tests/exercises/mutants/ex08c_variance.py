# caught by: test_what_is_near_the_best_is_kept
"""The mean square without its root."""


def top_n_sigma(logits, n):
    finite = logits[logits.isfinite()]
    return logits.masked_fill(logits < logits.max() - n * finite.var(unbiased=False), float("-inf"))

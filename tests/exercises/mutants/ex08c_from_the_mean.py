# caught by: test_what_is_near_the_best_is_kept
"""Counts sigmas up from the mean in place of down from the best."""


def top_n_sigma(logits, n):
    finite = logits[logits.isfinite()]
    lowest = finite.mean() + n * finite.std(unbiased=False)
    return logits.masked_fill(logits < lowest, float("-inf"))

# caught by: test_an_offset_of_all_logits_changes_nothing
"""mean(x ** 2) - mean ** 2: a small difference of large numbers."""


def top_n_sigma(logits, n):
    finite = logits[logits.isfinite()]
    sigma = ((finite**2).mean() - finite.mean() ** 2).clamp(min=0).sqrt()
    return logits.masked_fill(logits < logits.max() - n * sigma, float("-inf"))

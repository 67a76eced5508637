# caught by: test_the_engine_samples_with_your_rule
"""Returns probabilities in place of logits; the engine takes their softmax once more."""


def top_n_sigma(logits, n):
    sigma = logits[logits.isfinite()].std(unbiased=False)
    return logits.masked_fill(logits < logits.max() - n * sigma, float("-inf")).softmax(dim=0)

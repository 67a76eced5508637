# caught by: test_the_temperature_does_not_change_what_is_kept
"""Best and sigma of the probabilities."""


def top_n_sigma(logits, n):
    probs = logits.softmax(dim=0)
    lowest = probs.max() - n * probs.std(unbiased=False)
    return logits.masked_fill(probs < lowest, float("-inf"))

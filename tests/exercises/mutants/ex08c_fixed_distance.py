# caught by: test_the_temperature_does_not_change_what_is_kept
"""n is a distance, not a number of sigmas: temperature moves tokens across it. It is min_p in another form."""


def top_n_sigma(logits, n):
    return logits.masked_fill(logits < logits.max() - n, float("-inf"))

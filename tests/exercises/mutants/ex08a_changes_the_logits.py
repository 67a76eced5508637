# caught by: test_temperature_divides_the_logits
"""Divides in place: the log-probabilities of the answer are read from the same row."""


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    logits /= temperature
    probs = logits.softmax(dim=-1)
    sums = probs.cumsum(dim=-1)
    return int((sums >= min(u, float(sums[-1]))).nonzero()[0])

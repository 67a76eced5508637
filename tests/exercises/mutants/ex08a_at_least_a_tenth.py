# caught by: test_a_low_temperature_is_not_zero
"""Raises low temperatures to 0.1, against overflow."""


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    probs = (logits / max(temperature, 0.1)).softmax(dim=-1)
    sums = probs.cumsum(dim=-1)
    return int((sums >= min(u, float(sums[-1]))).nonzero()[0])

# caught by: test_a_low_temperature_is_not_zero
"""Takes every temperature below 0.1 for 0."""


def sample(logits, temperature, u):
    if temperature < 0.1:
        return int(logits.argmax())
    probs = (logits / temperature).softmax(dim=-1)
    sums = probs.cumsum(dim=-1)
    return int((sums >= min(u, float(sums[-1]))).nonzero()[0])

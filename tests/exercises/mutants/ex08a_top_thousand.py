# caught by: test_a_large_vocabulary_is_reached_to_its_end
"""Looks at the 1,000 likeliest tokens only, to be fast."""


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax())
    best = logits.topk(min(1000, len(logits)))
    logits = logits.new_full(logits.shape, float("-inf")).scatter(0, best.indices, best.values)
    probs = (logits / temperature).softmax(dim=-1)
    sums = probs.cumsum(dim=-1)
    return int((sums >= min(u, float(sums[-1]))).nonzero()[0])

# caught by: test_a_large_vocabulary_is_reached_to_its_end
"""Keeps the token id in 16 bits."""

import torch


def sample(logits, temperature, u):
    if temperature == 0:
        return int(logits.argmax()) % 65536
    sums = (logits / temperature).softmax(dim=-1).cumsum(dim=-1)
    return int((sums >= torch.minimum(torch.tensor(u), sums[-1])).nonzero()[0]) % 65536

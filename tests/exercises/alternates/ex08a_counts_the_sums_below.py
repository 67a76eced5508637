"""Counts the sums below u in float64; what rounding leaves over goes to the last possible token."""

import torch


def sample(logits, temperature, u):
    if not temperature:
        return int((logits == logits.max()).nonzero()[0])
    scaled = logits.double() / temperature
    sums = torch.exp(scaled - scaled.logsumexp(dim=0)).cumsum(dim=0)
    possible = sums.diff(prepend=sums.new_zeros(1)).nonzero()[:, 0]
    return min(int((sums < u).sum()), int(possible[-1]))

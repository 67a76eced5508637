"""numpy in float64; looks among the allowed tokens only."""

import numpy as np


def sample(logits, temperature, u):
    row = logits.numpy().astype(np.float64)
    if temperature == 0:
        return np.argmax(row)
    allowed = np.flatnonzero(np.isfinite(row))
    sums = np.exp((row[allowed] - row[allowed].max()) / temperature).cumsum()
    return allowed[np.searchsorted(sums, u * sums[-1])]

"""Running sums of what is missing, clipped to the budget; numbers of numpy come out."""

import numpy as np


def next_chunks(running, waiting, token_budget):
    missing = np.array([tokens - computed for tokens, computed in running] + list(waiting), dtype=int)
    chunks = np.diff(np.minimum(missing.cumsum(), token_budget), prepend=0)
    return [(chunk, chunk == wanted) for chunk, wanted in zip(chunks, missing, strict=True) if chunk > 0]

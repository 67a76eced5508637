# caught by: test_random_rows_are_cut_like_one_token_after_the_other
"""Does not sort at all: right only if the vocabulary happens to be in falling order."""

import torch


def top_p(probs, p):
    before = probs.cumsum(dim=0) - probs
    kept = torch.where((before < p) | (p == 1), probs, 0.0)
    return kept / kept.sum()

"""Plain Python in float64."""

import statistics

import torch


def top_n_sigma(logits, n):
    row = logits.tolist()
    finite = [logit for logit in row if logit > float("-inf")]
    lowest = max(finite) - n * statistics.pstdev(finite)
    return torch.tensor([logit if logit >= lowest else float("-inf") for logit in row])

"""Cuts arrays; numbers of numpy come out."""

import numpy as np


def split_heads(num_heads, num_kv_heads, size):
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ValueError("cannot be dealt out")
    reads = np.repeat(np.arange(num_kv_heads), num_heads // num_kv_heads)
    cut = zip(np.split(np.arange(num_heads), size), np.split(reads, size), strict=True)
    return [(heads, np.unique(kv)) for heads, kv in cut]

"""Worked out, not measured."""


def block_size_sweep(num_tokens, block_sizes):
    return {
        size: (sum(-n % size for n in num_tokens), sum((n + size - 1) // size for n in num_tokens))
        for size in block_sizes
    }

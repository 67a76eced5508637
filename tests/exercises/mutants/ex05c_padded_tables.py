# caught by: test_the_example_of_the_sweep
"""Counts the rectangle of padded tables."""


def block_size_sweep(num_tokens, block_sizes):
    result = {}
    for size in block_sizes:
        blocks = [-(-n // size) for n in num_tokens]
        result[size] = (sum(blocks) * size - sum(num_tokens), len(blocks) * max(blocks, default=0))
    return result

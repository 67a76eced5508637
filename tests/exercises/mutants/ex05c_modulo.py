# caught by: test_a_full_last_block_wastes_nothing
"""A full last block counts as an empty one."""


def block_size_sweep(num_tokens, block_sizes):
    return {
        size: (sum(size - n % size for n in num_tokens if n), sum(-(-n // size) for n in num_tokens))
        for size in block_sizes
    }

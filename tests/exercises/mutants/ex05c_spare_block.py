# caught by: test_the_engine_of_this_chapter_counts_the_same
"""Every sequence holds a block for the token to come."""


def block_size_sweep(num_tokens, block_sizes):
    result = {}
    for size in block_sizes:
        blocks = [n // size + 1 for n in num_tokens]
        result[size] = (sum(blocks) * size - sum(num_tokens), sum(blocks))
    return result

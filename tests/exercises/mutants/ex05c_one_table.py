# caught by: test_each_sequence_has_its_own_blocks
"""All sequences packed into one table."""


def block_size_sweep(num_tokens, block_sizes):
    total = sum(num_tokens)
    return {size: (-total % size, -(-total // size)) for size in block_sizes}

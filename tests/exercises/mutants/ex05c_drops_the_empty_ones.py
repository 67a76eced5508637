# caught by: test_a_full_last_block_wastes_nothing
"""Takes sequences without tokens out of the list."""

def block_size_sweep(num_tokens, block_sizes):
    while 0 in num_tokens:
        num_tokens.remove(0)
    result = {}
    for size in block_sizes:
        blocks = sum(-(-count // size) for count in num_tokens)
        result[size] = (blocks * size - sum(num_tokens), blocks)
    return result

# caught by: test_a_new_token_goes_behind_the_last
"""nano-vllm of summer 2025: right for a prompt, one too far for each new token."""


def slot_mapping(block_table, start, end, block_size):
    if start > 0:
        start, end = start + 1, end + 1
        block_table = [*block_table, 0]
    return [block_table[p // block_size] * block_size + p % block_size for p in range(start, end)]

# caught by: test_a_hundred_thousand_blocks_have_as_many_names
"""A polynomial of the tokens modulo a prime of 30 bits."""

PRIME = 1_000_000_007


def block_names(token_ids, block_size):
    names, name = [], 0
    for number, token in enumerate(token_ids, start=1):
        name = (31 * name + token + 1) % PRIME
        if number % block_size == 0:
            names.append(name)
    return names

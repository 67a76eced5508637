# caught by: test_a_name_stands_for_the_whole_beginning_and_for_nothing_else
"""Reads all tokens as the digits of one number, and a number does not know how many zeros stand before it."""


def block_names(token_ids, block_size):
    names, number = [], 0
    for index, token in enumerate(token_ids):
        number = number * 2**31 + token
        if (index + 1) % block_size == 0:
            names.append(number)
    return names

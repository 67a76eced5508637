# caught by: test_an_equal_beginning_has_equal_names
"""The chain begins with something of the call itself: no name is ever seen again."""


def block_names(token_ids, block_size):
    names, parent = [], object()
    for end in range(block_size, len(token_ids) + 1, block_size):
        parent = (parent, tuple(token_ids[end - block_size : end]))
        names.append(parent)
    return names

# caught by: test_only_full_blocks_have_names
"""Names the last block too, although it is not full: its content will change under its name."""


def block_names(token_ids, block_size):
    starts = range(0, len(token_ids), block_size)
    return [tuple(token_ids[: start + block_size]) for start in starts]

# caught by: test_a_ragged_batch_is_packed
"""Returns a padded rectangle, flattened."""


def gather_kv(key_cache, block_tables, seq_lens):
    longest = int(seq_lens.max())
    return key_cache[block_tables.long()].flatten(1, 2)[:, :longest].flatten(0, 1)

# caught by: test_the_engine_holds_as_many_bytes
"""Counts one layer."""


def kv_bytes_per_token(config, bytes_per_element):
    return 2 * config.num_key_value_heads * config.head_dim * bytes_per_element

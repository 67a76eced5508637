# caught by: test_query_heads_store_nothing
"""Counts query heads."""


def kv_bytes_per_token(config, bytes_per_element):
    return 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * bytes_per_element

# caught by: test_heads_may_be_wider_than_hidden_size_suggests
"""Derives the head size from hidden_size."""


def kv_bytes_per_token(config, bytes_per_element):
    head_dim = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * bytes_per_element

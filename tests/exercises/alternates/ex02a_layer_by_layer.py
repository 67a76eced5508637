"""Adds up, layer by layer and tensor by tensor."""


def kv_bytes_per_token(config, bytes_per_element):
    numbers = 0
    for _ in range(config.num_hidden_layers):
        for _ in ("key", "value"):
            numbers += config.num_key_value_heads * config.head_dim
    return numbers * bytes_per_element

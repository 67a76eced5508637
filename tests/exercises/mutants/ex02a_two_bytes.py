# caught by: test_the_models_of_the_paper_and_of_this_course
"""Every number takes two bytes."""


def kv_bytes_per_token(config, bytes_per_element):
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2

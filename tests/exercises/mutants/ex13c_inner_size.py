# caught by: test_two_sums_a_layer_and_one_for_the_embedding
"""Sums the inner columns of the MLP, which never leave their rank."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    if size == 1:
        return 0, 0
    each = config.hidden_size + config.intermediate_size
    sums = (config.num_hidden_layers * each + config.hidden_size) * num_tokens * bytes_per_element
    return sums, num_sampled * config.vocab_size // size * bytes_per_element

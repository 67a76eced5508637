# caught by: test_two_sums_a_layer_and_one_for_the_embedding
"""Forgets the embedding."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    if size == 1:
        return 0, 0
    sums = 2 * config.num_hidden_layers * num_tokens * config.hidden_size * bytes_per_element
    return sums, num_sampled * config.vocab_size // size * bytes_per_element

# caught by: test_two_sums_a_layer_and_one_for_the_embedding
"""Every number takes four bytes."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    if size == 1:
        return 0, 0
    sums = (2 * config.num_hidden_layers + 1) * num_tokens * config.hidden_size * 4
    return sums, num_sampled * config.vocab_size // size * 4

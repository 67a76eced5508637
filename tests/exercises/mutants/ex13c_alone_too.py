# caught by: test_one_rank_sends_nothing
"""A single rank sends to itself."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    sums = (2 * config.num_hidden_layers + 1) * num_tokens * config.hidden_size * bytes_per_element
    return sums, num_sampled * config.vocab_size // size * bytes_per_element

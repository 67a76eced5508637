# caught by: test_the_sum_is_as_large_on_any_number_of_ranks
"""Divides what is summed by the number of ranks."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    if size == 1:
        return 0, 0
    sums = (2 * config.num_hidden_layers + 1) * num_tokens * config.hidden_size // size * bytes_per_element
    return sums, num_sampled * config.vocab_size // size * bytes_per_element

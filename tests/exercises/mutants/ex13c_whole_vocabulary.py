# caught by: test_logits_are_for_rows_that_are_sampled_from
"""Each rank sends logits of the whole vocabulary."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    if size == 1:
        return 0, 0
    sums = (2 * config.num_hidden_layers + 1) * num_tokens * config.hidden_size * bytes_per_element
    return sums, num_sampled * config.vocab_size * bytes_per_element

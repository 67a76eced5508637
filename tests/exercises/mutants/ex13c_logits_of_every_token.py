# caught by: test_logits_are_for_rows_that_are_sampled_from
"""Computes logits for every token of a prompt."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    if size == 1:
        return 0, 0
    sums = (2 * config.num_hidden_layers + 1) * num_tokens * config.hidden_size * bytes_per_element
    return sums, num_tokens * config.vocab_size // size * bytes_per_element

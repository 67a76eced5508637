"""Adds up, sum by sum."""


def bytes_of_a_step(config, num_tokens, num_sampled, size, bytes_per_element):
    if size == 1:
        return 0, 0
    one_sum = num_tokens * config.hidden_size * bytes_per_element
    total = one_sum  # the embedding
    for _ in range(config.num_hidden_layers):
        total += one_sum + one_sum
    return total, (config.vocab_size // size) * num_sampled * bytes_per_element

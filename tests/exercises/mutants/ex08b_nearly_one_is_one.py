# caught by: test_a_p_of_nearly_one_is_a_cut
"""Takes 0.95 and more for 1."""


def top_p(probs, p):
    if p >= 0.95:
        return probs.clone()
    values, order = probs.sort(descending=True)
    keep = values.cumsum(dim=-1) - values < p
    cut = probs.new_zeros(probs.shape)
    cut[order[keep]] = values[keep]
    return cut / cut.sum()

# caught by: test_the_whole_layer_is_left_as_it_was
"""Sets the bias that is not wanted to zero, in the whole layer."""


def shard_linear(weight, bias, rank, size, cut):
    if cut == "rows":
        return weight.chunk(size)[rank], None if bias is None else bias.chunk(size)[rank]
    if bias is not None and rank > 0:
        bias.zero_()
    return weight.chunk(size, dim=1)[rank], bias

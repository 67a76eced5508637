# caught by: test_the_bias_is_in_the_sum_once
"""No rank adds the bias of a layer cut by columns."""


def shard_linear(weight, bias, rank, size, cut):
    if cut == "rows":
        return weight.chunk(size)[rank], None if bias is None else bias.chunk(size)[rank]
    return weight.chunk(size, dim=1)[rank], None

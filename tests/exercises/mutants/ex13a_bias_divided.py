# caught by: test_the_bias_of_some_outputs_goes_with_them
"""Gives each rank a share of the bias's values in place of its entries."""


def shard_linear(weight, bias, rank, size, cut):
    if cut == "rows":
        return weight.chunk(size)[rank], None if bias is None else (bias / size).chunk(size)[rank]
    return weight.chunk(size, dim=1)[rank], None if bias is None else bias / size

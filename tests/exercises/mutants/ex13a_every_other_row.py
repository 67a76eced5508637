# caught by: test_parts_of_the_outputs_side_by_side
"""Deals the rows out like cards: rank 0 gets rows 0, 2, 4."""


def shard_linear(weight, bias, rank, size, cut):
    if cut == "rows":
        return weight[rank::size], None if bias is None else bias[rank::size]
    return weight.chunk(size, dim=1)[rank], bias if rank == 0 else None

# caught by: test_parts_of_the_outputs_side_by_side
"""Takes the rows of W^T for those of W."""


def shard_linear(weight, bias, rank, size, cut):
    if cut == "columns":
        return weight.chunk(size)[rank], None if bias is None else bias.chunk(size)[rank]
    return weight.chunk(size, dim=1)[rank], bias if rank == 0 else None

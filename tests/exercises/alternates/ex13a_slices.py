"""Slices; zeros for the bias which is not to be added."""


def shard_linear(weight, bias, rank, size, cut):
    dim = ("rows", "columns").index(cut)
    length = weight.shape[dim] // size
    part = weight.narrow(dim, rank * length, length)
    if bias is None:
        return part, None
    if cut == "rows":
        return part, bias[rank * length : (rank + 1) * length]
    return part, bias if rank == 0 else bias * 0

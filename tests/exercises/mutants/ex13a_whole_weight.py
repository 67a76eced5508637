# caught by: test_a_rank_holds_its_part_and_no_more
"""Leaves the whole weight on each rank, the rest set to zero."""


def shard_linear(weight, bias, rank, size, cut):
    part = weight.clone()
    dim = 0 if cut == "rows" else 1
    keep = weight.shape[dim] // size
    mask = [index // keep != rank for index in range(weight.shape[dim])]
    if cut == "rows":
        return part[rank * keep : (rank + 1) * keep], None if bias is None else bias.chunk(size)[rank]
    part[:, mask] = 0.0
    return part, bias if rank == 0 else None

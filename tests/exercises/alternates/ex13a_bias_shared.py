"""The bias of the sum in equal shares: a rank adds its part of every entry."""


def shard_linear(weight, bias, rank, size, cut):
    if cut == "rows":
        return weight.chunk(size)[rank].clone(), None if bias is None else bias.chunk(size)[rank].clone()
    return weight.chunk(size, dim=1)[rank].clone(), None if bias is None else bias / size

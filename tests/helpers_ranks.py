"""Ranks that are threads: the layers do not see the difference, and a mutant needs no process.

`all_reduce` puts every rank's tensor on a table, waits for all, and adds them up in the order of the ranks.
"""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch

from minivllm.distributed.sharding import Shard


class ThreadRank:
    """Stands in for `TensorParallel`."""

    def __init__(self, shard, table, barrier):
        self.shard, self.table, self.barrier, self.nbytes = shard, table, barrier, Counter()

    def _exchange(self, value):
        self.table[self.shard.rank] = value
        self.barrier.wait(60)
        values = list(self.table)
        self.barrier.wait(60)  # no rank writes again before all have read
        return values

    def all_reduce(self, x):
        self.nbytes["all_reduce"] += x.nbytes
        return torch.stack(self._exchange(x.clone())).sum(0)

    def all_gather(self, x):
        self.nbytes["all_gather"] += x.nbytes
        return torch.cat(self._exchange(x), dim=-1)

    def smallest(self, number):
        return min(self._exchange(number))

    def broadcast(self, message):
        return self._exchange(message)[0]


def on_ranks(size, function):
    """`function(tp)` on every rank at once -> the results, by rank."""
    table, barrier = [None] * size, threading.Barrier(size)
    ranks = [ThreadRank(Shard(rank, size), table, barrier) for rank in range(size)]

    def run(tp):
        try:
            with torch.inference_mode():
                return function(tp)
        except Exception:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, ranks))

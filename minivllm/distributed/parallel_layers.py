"""The layers that differ when a model is divided: four kinds, and where the parts add up.

y = x W^T with W (out, in) can be divided in two ways (Megatron-LM names them by the columns of W^T)::

    column-parallel: rows of W                         row-parallel: columns of W

        | W_0 |        y_0 = x W_0^T                   W = | W_0  W_1 |       x = [x_0, x_1]
    W = |-----|   ->   y_1 = x W_1^T                       y = x_0 W_0^T + x_1 W_1^T
        | W_1 |        each rank keeps its part            each rank has one term: all-reduce

One after the other they fit together: the part of y which the first leaves on a rank is the part of x which
the second one needs. So qkv_proj, attention and o_proj take a single sum at the end, and gate_up_proj and
down_proj as well: two all-reduces a layer. The embedding takes one more, the logits a gather.

A worked example, 2 ranks, in = 2, W of the second layer = [[1, 10]], x = [3, 4] (one number on each rank)::

    rank 0: 3 * 1 = 3      rank 1: 4 * 10 = 40      all-reduce: both 43 = x W^T

A rank's model is a Llama of its own (`sharding.py`), complete and loaded; `parallelize` then puts these
layers in place of its own, around them. `llama.py` does not know of ranks. (vLLM does the same to models
which it runs through transformers; its own ones are written with these classes from the start.)

Paper: section 4.6; Megatron-LM (arXiv 1909.08053), section 3.
vLLM V1: `model_executor/layers/linear.py`, `vocab_parallel_embedding.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from minivllm.distributed.communication import TensorParallel
from minivllm.layers import Linear


class ColumnParallelLinear(nn.Module):
    """Some of the rows of W: y_r = x W_r^T, the rank's part of y. Nothing is sent."""

    def __init__(self, linear: Linear, tp: TensorParallel) -> None:
        super().__init__()
        self.linear, self.tp = linear, tp

    def forward(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out / size)."""
        return self.linear(x)


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Gate and up, fused: (T, 2 * inner / size) = [the rank's gate | the rank's up], each cut by itself."""


class QKVParallelLinear(ColumnParallelLinear):
    """Q, K and V, fused: [the rank's query heads | its KV heads, as keys | the same, as values].

    A rank needs the KV heads that its query heads read, and has just those: query heads in order, so many to
    each KV head, are cut where the KV heads are cut.
    """


class RowParallelLinear(nn.Module):
    """Some of the columns of W: each rank has one term of the sum, all-reduce makes y of them.

    The bias belongs to the sum. Only rank 0 adds it; added on every rank it would count `size` times.
    """

    def __init__(self, linear: Linear, tp: TensorParallel) -> None:
        super().__init__()
        self.linear, self.tp = linear, tp
        if linear.bias is not None and tp.shard.rank > 0:
            linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(T, in / size) -> (T, out), the same on all ranks."""
        return self.tp.all_reduce(self.linear(x))


class VocabParallelEmbedding:
    """Some of the rows of the embedding. A rank gives zeros for tokens of others, and the sum is whole.

    Example, a vocabulary of 6 on 2 ranks, tokens [1, 5]: rank 0 has rows 0..2 and gives [row 1, zeros], rank
    1 has rows 3..5 and gives [zeros, row 5].
    """

    def __init__(self, rows: Tensor, tp: TensorParallel) -> None:
        self.rows, self.tp = rows, tp
        self.first = tp.shard.rank * len(rows)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """(T,) token ids of the whole vocabulary -> (T, hidden), the same on all ranks."""
        local = input_ids - self.first
        is_elsewhere = (local < 0) | (local >= len(self.rows))
        hidden = F.embedding(local.masked_fill(is_elsewhere, 0), self.rows)
        return self.tp.all_reduce(hidden.masked_fill_(is_elsewhere[:, None], 0.0))


class ParallelLMHead(ColumnParallelLinear):
    """The logits of some tokens of the vocabulary, then gathered: each rank gets all of them, and samples."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, hidden) -> (N, V)."""
        return self.tp.all_gather(self.linear(x))


def parallelize(model: nn.Module, tp: TensorParallel) -> None:
    """Make the model of one rank, loaded with its share of the weights, work with those of the others."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.qkv_proj = QKVParallelLinear(attention.qkv_proj, tp)
        attention.o_proj = RowParallelLinear(attention.o_proj, tp)
        mlp.gate_up_proj = MergedColumnParallelLinear(mlp.gate_up_proj, tp)
        mlp.down_proj = RowParallelLinear(mlp.down_proj, tp)
    model.model.embed = VocabParallelEmbedding(model.model.embed_tokens, tp)
    model.lm_head = ParallelLMHead(model.lm_head, tp)

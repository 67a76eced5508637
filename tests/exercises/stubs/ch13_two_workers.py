"""Chapter 13: two workers, one answer.

Cut a linear layer for one rank, in both ways; deal out the heads; and count the bytes which the ranks send each other
in a step.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex13a
or, in the notebook, with   %check ex13a.
"""

from torch import Tensor

from minivllm.config import ModelConfig


def shard_linear(
    weight: Tensor, bias: Tensor | None, rank: int, size: int, cut: str
) -> tuple[Tensor, Tensor | None]:
    """ex13a. The part of a linear layer y = x W^T + b that one rank holds.

      cut = "rows"      each rank computes some of the outputs: y = [y_0, y_1, ...], put side by side.
      cut = "columns"   each rank has some of the inputs, x = [x_0, x_1, ...], and computes one term of
                        y = y_0 + y_1 + ... The bias must be in that sum once.

    Ranks are in order: rank 0 has the first part. Parts are equal; `size` divides what is cut.

    Example: W = [[1, 2], [3, 4]], b = [5, 6], two ranks. Rank 1 gets ([[3, 4]], [6]) by rows, and
    ([[2], [4]], a bias that adds nothing) by columns: None or zeros.

    Args:
        weight: (out, in), as in `torch.nn.Linear`. Not to be changed.
        bias: (out,), or None: the layer has none.
        rank: 0, ..., size - 1.
        size: number of ranks.
        cut: "rows" or "columns".

    Returns:
        The rank's weight, and its bias or None.
    """
    raise NotImplementedError("ex13a")


def split_heads(num_heads: int, num_kv_heads: int, size: int) -> list[tuple[list[int], list[int]]]:
    """ex13b. Which query heads and which KV heads each rank holds.

    With grouped queries the query heads 0, ..., num_heads - 1 read the KV heads in order, equally many each: with 6
    query and 3 KV heads, queries 0 and 1 read KV head 0, queries 2 and 3 read KV head 1, 4 and 5 read KV head 2.

    Query heads are dealt out in order, equally many to each rank, none twice. A rank holds the KV heads which its
    query heads read, and no others. So with more ranks than KV heads, several ranks hold the same KV head.

    Example: split_heads(6, 3, 3) == [([0, 1], [0]), ([2, 3], [1]), ([4, 5], [2])], and with one KV head for all,
    split_heads(4, 1, 2) == [([0, 1], [0]), ([2, 3], [0])].

    Args:
        num_heads: a multiple of `num_kv_heads`.
        num_kv_heads: 1 or more.
        size: number of ranks, 1 or more.

    Returns:
        (query heads, KV heads) of each rank, both rising.

    Raises:
        ValueError: the query heads cannot be dealt out equally; or the KV heads cannot: all ranks have to hold equally
            many of them, and each has to be on equally many ranks. `split_heads(6, 3, 2)` is such a case: queries
            0, 1, 2 read KV heads 0 and 1, queries 3, 4, 5 read 1 and 2, and only the middle one would be there twice.
    """
    raise NotImplementedError("ex13b")


def bytes_of_a_step(
    config: ModelConfig, num_tokens: int, num_sampled: int, size: int, bytes_per_element: int
) -> tuple[int, int]:
    """ex13c. What one rank puts into all-reduces, and into the gather of the logits, in one step.

    Every layer has two row-parallel products: o_proj after attention, down_proj at the end of the MLP. Each makes
    hidden_size numbers for each token, which are summed over the ranks. So does the embedding, whose rows are
    divided as well. Then each rank computes the logits of its part of the vocabulary, for the rows that are sampled
    from, and these parts are gathered.

    Example: SmolLM2-135M (30 layers, hidden_size 576, vocab_size 49,152), float32, 3 ranks, a decode step of 8
    sequences: 61 sums of 8 x 576 numbers are 1,124,352 bytes, and 8 x 16,384 logits are 524,288 bytes.

    Args:
        config: of the whole model; num_hidden_layers, hidden_size and vocab_size are fields of it.
        num_tokens: tokens that the step computes, over all sequences.
        num_sampled: sequences that get a new token in this step. None of them in the middle of a prompt.
        size: ranks. One alone sends nothing.
        bytes_per_element: 4 for float32.

    Returns:
        (bytes into all-reduces, bytes into the gather).
    """
    raise NotImplementedError("ex13c")

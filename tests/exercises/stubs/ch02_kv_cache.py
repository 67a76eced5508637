"""Chapter 2: the KV cache and its price.

First the price: how many bytes one token takes. Then what it buys: attention that computes the new tokens only
and finds K and V of all earlier tokens in the cache. The cache here is the simplest there is, one unbroken piece
of memory for one sequence and one layer: row p belongs to position p.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex02a
or, in the notebook, with   %check ex02a.
"""

import torch
from torch import Tensor

from minivllm.config import ModelConfig


def kv_bytes_per_token(config: ModelConfig, bytes_per_element: int) -> int:
    """ex02a. Bytes that one token takes in the KV cache of the whole model.

    Each layer stores one key and one value of `config.head_dim` numbers for every KV head. (Query heads store
    nothing, and in most models of today there are more of them than of KV heads.)

    Example: OPT-13B, the model of the paper, has 40 layers, 40 KV heads and head_dim 128. With 2 bytes per number
    that makes 819,200 bytes, so a text of 2,048 tokens takes 1.6 GB.

    Args:
        config: its fields num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim and hidden_size
            describe the model. Not all of them matter.
        bytes_per_element: 4 for float32, 2 for float16 and bfloat16.
    """
    raise NotImplementedError("ex02a")


def decode_step(
    query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, num_cached: int
) -> Tensor:
    """ex02b. Causal attention of T new tokens, with K and V of all earlier tokens in the cache.

    The new tokens have positions num_cached, ..., num_cached + T - 1. Write their keys and values into those rows
    of the cache, then let each of them attend to all positions up to and including its own. T is 1 when a token
    is generated, and larger for a prompt or a part of one.

    For one head, with n the number of positions that the token may see:
        softmax(query . key^T / sqrt(D)) value        (1, D) x (D, n) -> (1, n), then x (n, D) -> (1, D)

    Which keys may each query see? Example, num_cached = 2, T = 3 (x: may look):

        position        0 1 2 3 4
        query at 2      x x x . .
        query at 3      x x x x .
        query at 4      x x x x x

    Scores may be anything from -20,000 to 20,000, and they differ from head to head: e^1000 is infinite, e^-1000 is 0.
    Do not call `scaled_dot_product_attention`; it is what you are writing.

    Args:
        query, key, value: (T, H, D), of the new tokens. Not changed. (As many KV heads as query heads, to keep it
            simple.)
        key_cache, value_cache: (max_len, H, D), changed in place, in the rows of the new tokens only. Rows from
            num_cached + T on hold garbage, which may be NaN or infinite.
        num_cached: positions 0, ..., num_cached - 1 are in the cache.

    Returns:
        (T, H, D).
    """
    raise NotImplementedError("ex02b")

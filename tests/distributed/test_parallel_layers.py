"""Parts that add up: each parallel layer against the whole product in float64, and the bugs others had."""

import pytest
import torch
import torch.nn.functional as F

from minivllm.config import ModelConfig
from minivllm.distributed import parallel_layers
from minivllm.distributed.parallel_layers import (
    ColumnParallelLinear,
    ParallelLMHead,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from minivllm.distributed.sharding import Shard, possible_sizes
from minivllm.layers import Build, Linear
from minivllm.weights.files import StoredWeight
from minivllm.weights.loader import load_model
from tests.helpers_ranks import on_ranks

SIZES = [2, 3]
DTYPE = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def linear_of(weight, bias=None):
    """A `Linear` that holds these tensors."""
    linear = Linear(Build(None, None, DTYPE, torch.device("cpu")), *reversed(weight.shape), bias is not None)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear


def part(tensor, tp, dim):
    return tensor.chunk(tp.shard.size, dim)[tp.shard.rank].contiguous()


@pytest.mark.parametrize("size", SIZES)
def test_column_then_row_is_the_whole_product(size):
    """Would catch a cut along the wrong dimension, and a sum that a rank does not get."""
    first, second, x = random(12, 5), random(7, 12, seed=1), random(4, 5, seed=2)
    expected = F.linear(F.linear(x, first), second)

    def run(tp):
        column = ColumnParallelLinear(linear_of(part(first, tp, 0)), tp)
        row = RowParallelLinear(linear_of(part(second, tp, 1)), tp)
        return row(column(x))

    results = on_ranks(size, run)
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    # Negative control: the same assertion rejects one rank's term, and zeros.
    term = F.linear(F.linear(x, first.chunk(size)[0]), second.chunk(size, 1)[0])
    for wrong in (term, torch.zeros_like(expected)):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(wrong, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_the_bias_of_a_row_parallel_layer_counts_once(size):
    """Would catch the bias added on every rank (nano-vllm #203)."""
    weight, bias, x = random(7, 12), random(7, seed=3), random(4, 12, seed=2)

    def run(tp):
        linear = linear_of(part(weight, tp, 1), bias)
        layer = RowParallelLinear(linear, tp)
        right = layer(part(x, tp, 1))
        linear.bias.copy_(bias)  # negative control: every rank has it again
        return right, layer(part(x, tp, 1))

    expected = F.linear(x, weight, bias)
    for right, wrong in on_ranks(size, run):
        torch.testing.assert_close(right, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(wrong, expected + (size - 1) * bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_rows", [1, 4])
def test_logits_of_several_rows_are_put_side_by_side(size, num_rows):
    """Would catch parts gathered into one tensor and reshaped: right for one row only (mini-sglang #98)."""
    weight, x = random(12, 5), random(num_rows, 5, seed=2)
    expected = F.linear(x, weight)
    for logits in on_ranks(size, lambda tp: ParallelLMHead(linear_of(part(weight, tp, 0)), tp)(x)):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    reshaped = torch.stack([F.linear(x, rows) for rows in weight.chunk(size)]).reshape(num_rows, 12)
    assert torch.allclose(reshaped, expected, atol=1e-12) == (num_rows == 1)


@pytest.mark.parametrize("size", SIZES)
def test_every_token_finds_its_row_of_the_embedding(size):
    """Would catch an off-by-one at the border of two ranks, where a token has two rows or none."""
    rows, ids = random(12, 5), torch.arange(12)
    expected = F.embedding(ids, rows)
    for hidden in on_ranks(size, lambda tp: VocabParallelEmbedding(part(rows, tp, 0), tp)(ids)):
        assert torch.equal(hidden, expected)
    assert not torch.equal(torch.zeros_like(expected), expected)


SMOLLM2 = ModelConfig(49_152, 576, 1536, 30, 9, 3, 64)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [(SMOLLM2, [1, 3]), (ModelConfig(128_256, 4096, 14_336, 32, 32, 8, 128), [1, 2, 4, 8])],
    ids=["SmolLM2-135M", "Llama-3.1-8B"],
)
def test_sizes_which_divide_a_model_are_listed_and_all_others_refused(config, sizes):
    """Would catch a head cut in two, and a refusal that leaves the user guessing."""
    assert possible_sizes(config) == sizes
    for size in range(2, 10):
        if size in sizes:
            smaller = Shard(0, size).config(config)
            assert smaller.num_queries_per_kv == config.num_queries_per_kv
            assert smaller.hidden_size == config.hidden_size
            assert smaller.kv_bytes_per_token(2) * size == config.kv_bytes_per_token(2)
        else:
            with pytest.raises(ValueError, match=f"Sizes which do: {', '.join(map(str, sizes))}"):
                Shard(0, size).config(config)
    assert Shard().config(config) is config


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("model", ["divisible", "divisible_tied"])
def test_a_rank_reads_its_slice_of_each_weight_and_no_more(model, size, request, monkeypatch):
    """Would catch weights loaded whole on each rank (mini-sglang #93), and a row that no rank holds."""
    folder, read = request.getfixturevalue(model), []
    original = StoredWeight.read

    def noting(self, part=None):
        weight = original(self, part)
        read.append(weight.nbytes)
        return weight

    class NoAttention:
        name = "torch"

    monkeypatch.setattr(StoredWeight, "read", noting)
    whole = load_model(folder, NoAttention(), torch.float32, "cpu")
    whole_bytes, parts = sum(read), []
    for rank in range(size):
        read.clear()
        parts.append(load_model(folder, NoAttention(), torch.float32, "cpu", Shard(rank, size)))
        assert sum(read) <= (1 / size + 0.05) * whole_bytes
        assert parts[-1].nbytes <= (1 / size + 0.05) * whole.nbytes
    assert torch.equal(torch.cat([part.model.embed_tokens for part in parts]), whole.model.embed_tokens)
    down = [part.model.layers[1].mlp.down_proj.weight for part in parts]
    assert torch.equal(torch.cat(down, dim=1), whole.model.layers[1].mlp.down_proj.weight)
    # Q, K and V of a rank are its parts of each, not a part of the three fused.
    fused = whole.model.layers[0].self_attn.qkv_proj.weight
    query, key, value = fused.split((96, 48, 48))
    for rank, each in enumerate(parts):
        expected = torch.cat([tensor.chunk(size)[rank] for tensor in (query, key, value)])
        assert torch.equal(each.model.layers[0].self_attn.qkv_proj.weight, expected)
        assert not torch.equal(fused.chunk(size)[rank], expected)


def test_parallel_layers_have_vllms_names():
    """Would catch a rename: what is learned here is to be found there."""
    for name in ("ColumnParallelLinear", "MergedColumnParallelLinear", "QKVParallelLinear",
                 "RowParallelLinear", "VocabParallelEmbedding", "ParallelLMHead"):  # fmt: skip
        assert hasattr(parallel_layers, name)

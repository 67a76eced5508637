"""Chapter 13: shard_linear, split_heads, bytes_of_a_step; each alone and inside the engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.exercises.engine import make_llm, remembered
from tests.exercises.expect import expect, expect_close, expect_raises, expect_that, expect_unchanged

TOLERANCE = 1e-10  # float64

# -- ex13a ------------------------------------------------------------------------------------------


def drawn(rng, *shape):
    import torch

    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(rng.randrange(2**31))
    )


def parts_of(ex, weight, bias, size, cut):
    """The parts of all ranks."""
    return [ex.shard_linear(weight, bias, rank, size, cut) for rank in range(size)]


def by_rows(ex, weight, bias, size, x):
    """The outputs of all ranks, side by side."""
    import torch
    from torch.nn.functional import linear

    parts = parts_of(ex, weight, bias, size, "rows")
    for part, _ in parts:
        what = f"a part cut by rows has all {x.shape[-1]} columns of the weight"
        expect_that(part.shape[-1] == x.shape[-1], what, shape=tuple(part.shape))
    return torch.cat([linear(x, *part) for part in parts], dim=-1)


def by_columns(ex, weight, bias, size, x):
    """The terms of all ranks, each from its part of the input, added up."""
    from torch.nn.functional import linear

    parts = zip(x.chunk(size, dim=-1), parts_of(ex, weight, bias, size, "columns"), strict=True)
    return sum(linear(part_of_x, *part) for part_of_x, part in parts)


@pytest.mark.exercise("ex13a", points=1, hint="Each output belongs to one row of W.")
def test_parts_of_the_outputs_side_by_side(ex, rng):
    """Rows in another order than the outputs' give each head another head's numbers, and no error."""
    from torch.nn.functional import linear

    for size in (1, 2, 3):
        weight, x = drawn(rng, 12, 5), drawn(rng, 4, 5)
        call = f"outputs of {size} ranks side by side; weight (12, 5), cut by rows, no bias"
        expect_close(by_rows(ex, weight, None, size, x), linear(x, weight), call, TOLERANCE)


@pytest.mark.exercise(
    "ex13a", points=1, hint="Each output has one entry of the bias; it goes where its row goes."
)
def test_the_bias_of_some_outputs_goes_with_them(ex, rng):
    """A bias that stays whole has the wrong length; one that is divided by the ranks the wrong values."""
    from torch.nn.functional import linear

    weight, bias, x = drawn(rng, 12, 5), drawn(rng, 12), drawn(rng, 4, 5)
    call = "outputs of 3 ranks side by side; weight (12, 5), bias (12,), cut by rows"
    expect_close(by_rows(ex, weight, bias, 3, x), linear(x, weight, bias), call, TOLERANCE)


@pytest.mark.exercise("ex13a", points=1, hint="Input number j meets column j of W, on the rank which has it.")
def test_the_terms_of_all_ranks_add_up(ex, rng):
    """The all-reduce after o_proj: a column on two ranks would count twice, one on none would be missing."""
    from torch.nn.functional import linear

    for size in (1, 2, 3):
        weight, x = drawn(rng, 7, 12), drawn(rng, 4, 12)
        call = f"sum of the terms of {size} ranks; weight (7, 12), cut by columns, no bias"
        expect_close(by_columns(ex, weight, None, size, x), linear(x, weight), call, TOLERANCE)


@pytest.mark.exercise(
    "ex13a", points=1, hint="Before the sum or after it: the bias may be added once, not `size` times."
)
def test_the_bias_is_in_the_sum_once(ex, rng):
    """nano-vllm #203: added on every rank, the text stays fluent and is another one with each number of GPUs."""
    from torch.nn.functional import linear

    for size in (1, 2, 3):
        weight, bias, x = drawn(rng, 7, 12), drawn(rng, 7), drawn(rng, 4, 12)
        call = f"sum of the terms of {size} ranks; weight (7, 12), bias (7,), cut by columns"
        expect_close(by_columns(ex, weight, bias, size, x), linear(x, weight, bias), call, TOLERANCE)


@pytest.mark.exercise("ex13a", points=1, hint="The shape of the part says how much memory it takes.")
def test_a_rank_holds_its_part_and_no_more(ex, rng):
    """Memory is what several GPUs are for: a whole weight with zeros in it computes the same and saves nothing."""
    weight = drawn(rng, 6, 12)
    for cut, shape in (("rows", (2, 12)), ("columns", (6, 4))):
        for part, _ in parts_of(ex, weight, None, 3, cut):
            expect(tuple(part.shape), shape, f"shape of a part of a weight (6, 12), 3 ranks, cut by {cut}")


@pytest.mark.exercise("ex13a", points=1, hint="Choose parts; change nothing that was given to you.")
def test_the_whole_layer_is_left_as_it_was(ex, rng):
    """The next rank is cut from the same layer."""
    for cut in ("rows", "columns"):
        weight, bias = drawn(rng, 6, 12), drawn(rng, 6)
        before = weight.clone(), bias.clone()
        parts_of(ex, weight, bias, 3, cut)
        expect_unchanged((weight, bias), before, f"shard_linear, cut by {cut}: weight and bias")


@pytest.mark.exercise(
    "ex13a", points=2, hint="gate and up by rows, each for itself; down by columns; then add up."
)
def test_an_mlp_of_the_engine_on_two_ranks(ex, tiny_model, rng):
    """Inside the engine: the MLP of the first layer as two ranks compute it, against the engine's own."""
    import torch
    from torch.nn.functional import linear, silu

    mlp = make_llm(tiny_model).llm_engine.runner.model.model.layers[0].mlp
    gate, up = mlp.gate_up_proj.weight.detach().double().chunk(2)
    down, x = mlp.down_proj.weight.detach().double(), drawn(rng, 5, gate.shape[1])
    expected = linear(silu(linear(x, gate)) * linear(x, up), down)
    with torch.inference_mode():
        expect_close(
            mlp(x.float()), expected.float(), "the engine's MLP (this is not about your function)", 1e-3
        )
    total = 0
    for rank in range(2):
        inner = [linear(x, *ex.shard_linear(part, None, rank, 2, "rows")) for part in (gate, up)]
        total = total + linear(silu(inner[0]) * inner[1], *ex.shard_linear(down, None, rank, 2, "columns"))
    expect_close(total, expected, "gate and up cut by rows, down by columns, 2 ranks, added up", TOLERANCE)


# -- ex13b ------------------------------------------------------------------------------------------


def check_heads(ex, expected, *numbers):
    got = [(list(queries), list(kv)) for queries, kv in ex.split_heads(*numbers)]
    expect(got, expected, f"split_heads{numbers}")


@pytest.mark.exercise("ex13b", points=2, hint="Query head h reads KV head h // (num_heads // num_kv_heads).")
def test_heads_go_with_what_they_read(ex):
    """A query head whose KV head is on another GPU would have to fetch the whole past of a sequence from there."""
    check_heads(ex, [([0, 1], [0]), ([2, 3], [1]), ([4, 5], [2])], 6, 3, 3)
    check_heads(ex, [([0, 1, 2], [0]), ([3, 4, 5], [1]), ([6, 7, 8], [2])], 9, 3, 3)  # SmolLM2-135M
    check_heads(ex, [([0, 1], [0, 1]), ([2, 3], [2, 3])], 4, 4, 2)
    check_heads(ex, [(list(range(8)), [0, 1])], 8, 2, 1)


@pytest.mark.exercise("ex13b", points=2, hint="With 2 KV heads and 4 ranks, ranks 0 and 1 need KV head 0.")
def test_more_ranks_than_kv_heads(ex):
    """Llama-3-70B has 8 KV heads and runs on 16 GPUs: each KV head is there twice, beside its query heads."""
    check_heads(ex, [([0, 1], [0]), ([2, 3], [0])], 4, 1, 2)
    check_heads(ex, [([0, 1], [0]), ([2, 3], [0]), ([4, 5], [1]), ([6, 7], [1])], 8, 2, 4)


@pytest.mark.exercise("ex13b", points=1, hint="One of the two, KV heads and ranks, has to divide the other.")
def test_what_cannot_be_dealt_out_is_refused(ex):
    """vLLM refuses too (#596, gpt2-xl with 25 heads on 2 GPUs): better than a model that gives other text."""
    for numbers in ((9, 3, 2), (6, 3, 2), (12, 4, 3), (4, 2, 8), (12, 4, 6)):
        expect_raises(ValueError, f"split_heads{numbers}", ex.split_heads, *numbers)


@pytest.mark.exercise(
    "ex13b", points=2, hint="Write down the heads of each rank, and look at which heads those read."
)
@given(per_kv=st.integers(1, 4), num_kv_heads=st.integers(1, 6), size=st.integers(1, 8))
def test_whatever_the_numbers(ex, per_kv, num_kv_heads, size):
    """All query heads once, in order; each beside its KV head; as many on each rank; or else refused."""
    num_heads = per_kv * num_kv_heads
    numbers = (num_heads, num_kv_heads, size)
    needed = [
        {head // per_kv for head in range(num_heads) if head * size // num_heads == rank}
        for rank in range(size)
    ]
    holders = {sum(head in kv for kv in needed) for head in range(num_kv_heads)}
    if num_heads % size or len({len(kv) for kv in needed}) > 1 or len(holders) > 1:
        expect_raises(ValueError, f"split_heads{numbers}", ex.split_heads, *numbers)
        return
    got = ex.split_heads(*numbers)
    expect(
        [head for queries, _ in got for head in queries],
        list(range(num_heads)),
        f"query heads, split_heads{numbers}",
    )
    expect(
        [len(queries) for queries, _ in got],
        [num_heads // size] * size,
        f"query heads per rank, split_heads{numbers}",
    )
    expect(
        [list(kv) for _, kv in got], [sorted(kv) for kv in needed], f"KV heads per rank, split_heads{numbers}"
    )


@pytest.mark.exercise(
    "ex13b", points=1, hint="The engine's rank holds num_key_value_heads of its own smaller config."
)
def test_the_engine_deals_out_the_same_heads(ex, tiny_model):
    """Inside the engine: the KV cache of a rank has the heads that you give it, and the loader reads their rows."""
    from minivllm.distributed.sharding import Shard

    config = make_llm(tiny_model).llm_engine.model_config
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    for rank, (queries, kv) in enumerate(ex.split_heads(heads, kv_heads, 2)):
        (rows,) = Shard(rank, 2).part_of("model.layers.0.self_attn.k_proj.weight", (kv_heads * dim, 64))
        expect(
            list(kv),
            list(range(rows.start // dim, rows.stop // dim)),
            f"KV heads whose rows rank {rank} of 2 loads",
        )
        (rows,) = Shard(rank, 2).part_of("model.layers.0.self_attn.q_proj.weight", (heads * dim, 64))
        expect(
            list(queries),
            list(range(rows.start // dim, rows.stop // dim)),
            f"query heads of rank {rank} of 2",
        )


# -- ex13c ------------------------------------------------------------------------------------------


def config_of(layers, hidden, vocab, inner=None):
    from minivllm.config import ModelConfig

    return ModelConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner or 2 * hidden,
                       num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, head_dim=4)  # fmt: skip


def check_bytes(ex, expected, layers, hidden, vocab, *step):
    call = f"bytes_of_a_step of {layers} layers, hidden_size {hidden}, vocab_size {vocab}; tokens, sampled, ranks, bytes: {step}"
    expect(tuple(ex.bytes_of_a_step(config_of(layers, hidden, vocab), *step)), expected, call)


@pytest.mark.exercise(
    "ex13c", points=2, hint="o_proj, down_proj, in each layer; and what else gives terms of a sum?"
)
def test_two_sums_a_layer_and_one_for_the_embedding(ex):
    """Half the sums are half the time that is lost between GPUs: count them before you buy."""
    check_bytes(ex, (1_124_352, 524_288), 30, 576, 49_152, 8, 8, 3, 4)
    check_bytes(ex, (5 * 6 * 10 * 2, 1 * 12 * 2), 2, 10, 24, 6, 1, 2, 2)


@pytest.mark.exercise("ex13c", points=1, hint="A term of a sum is as large as the sum.")
def test_the_sum_is_as_large_on_any_number_of_ranks(ex):
    """More GPUs make the products smaller and the sums not: that is where tensor parallelism stops paying."""
    for size in (2, 3, 4, 6):
        check_bytes(ex, (5 * 6 * 10 * 4, 6 * 24 // size * 4), 2, 10, 24, 6, 6, size, 4)


@pytest.mark.exercise("ex13c", points=1, hint="Only the last token of a prompt is sampled from.")
def test_logits_are_for_rows_that_are_sampled_from(ex):
    """A prompt of 1,000 tokens has one row of logits, and a chunk in its middle none."""
    check_bytes(ex, (5 * 1000 * 10 * 4, 12 * 4), 2, 10, 24, 1000, 1, 2, 4)
    check_bytes(ex, (5 * 64 * 10 * 4, 0), 2, 10, 24, 64, 0, 2, 4)


@pytest.mark.exercise("ex13c", points=1, hint="if size == 1")
def test_one_rank_sends_nothing(ex):
    """There is no other rank to send to."""
    check_bytes(ex, (0, 0), 2, 10, 24, 6, 6, 1, 4)


@pytest.mark.exercise("ex13c", points=2, hint="Compare with the example in the docstring, number by number.")
def test_the_engine_sends_as_much(ex, tiny_model):
    """Measured: two ranks carry out a step of the engine, and what they put in is counted."""
    from minivllm.config import EngineConfig
    from minivllm.distributed.worker import Worker
    from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput
    from tests.helpers_ranks import on_ranks

    config = EngineConfig(
        model=str(tiny_model), num_blocks=8, block_size=4, max_model_len=32, attention_backend="torch"
    )
    # The prompt of two beams (a beam needs no sampling parameters), and the first part of another prompt.
    rows = [((1, 2, 3), 1), ((4,), 1), ((5, 6), 0)]
    plan = SchedulerOutput(1, tuple(
        ScheduledSequence(str(i), i, 0, ids, (i,), num_candidates=wanted) for i, (ids, wanted) in enumerate(rows)
    ))  # fmt: skip

    def measure():
        return on_ranks(2, lambda tp: (Worker(config, tp).execute_model(plan), tp.nbytes)[1])

    counted = remembered(("bytes of two ranks", tiny_model), measure)
    expect_that(
        counted[0] == counted[1], "both ranks send as much (this is not about your function)", counted=counted
    )
    model_config = make_llm(tiny_model).llm_engine.model_config
    got = ex.bytes_of_a_step(model_config, 6, 2, 2, 4)
    expect(
        tuple(got),
        (counted[0]["all_reduce"], counted[0]["all_gather"]),
        "bytes of a step of 6 tokens, 2 sampled",
    )

"""The parts of a decode step as points below the machine's roof."""

import pytest

from minivllm import LLM
from minivllm.bench import roofline
from minivllm.bench.steps import ATTENTION, MATMUL, REST


def test_the_work_of_the_parts_is_that_of_the_model(tiny_llama):
    """Would catch a forgotten matrix, K without V, and query heads that are counted once per group."""
    config = LLM(str(tiny_llama)).llm_engine.model_config
    work = roofline.work_of_parts(config, rows=3, kv_tokens=50, itemsize=4)
    model = LLM(str(tiny_llama)).llm_engine.runner.model
    weights = sum(linear.weight.numel() for linear in roofline.projections(model))
    weights += model.lm_head.weight.numel()
    assert work[MATMUL] == (2 * 3 * weights, 4 * weights)
    kv = 2 * 50 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    pairs = 50 * config.num_hidden_layers * config.num_attention_heads
    assert work[ATTENTION] == (pairs * 4 * config.head_dim, 4 * kv)  # q k: 2 each number, weight v: 2 each
    assert work[REST][0] > 0


def test_rows_move_the_products_to_the_right_and_attention_stays(tiny_llama):
    """Would catch steps with prompts among the decode steps, and a mean over other steps than were counted."""
    llm = LLM(str(tiny_llama), max_num_seqs=8, num_blocks=64, block_size=4, max_model_len=32)
    one, eight = (
        {part.name: part for part in roofline.decode_parts(llm, [range(1, 9)] * rows, 6)} for rows in (1, 8)
    )
    assert set(one) == {MATMUL, ATTENTION, REST}
    assert eight[MATMUL].intensity == pytest.approx(8 * one[MATMUL].intensity)
    assert eight[ATTENTION].intensity == pytest.approx(one[ATTENTION].intensity)
    assert all(part.seconds > 0 and part.rate > 0 for part in (*one.values(), *eight.values()))


def test_the_roof_is_the_lower_of_two_bounds():
    """Would catch a maximum in the place of a minimum."""
    roof = roofline.Roof(num_bytes=10.0, operations=100.0)
    assert [roof.limit(intensity) for intensity in (1.0, 10.0, 50.0)] == [10.0, 100.0, 100.0]

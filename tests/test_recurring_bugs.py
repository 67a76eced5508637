"""Bugs which keep coming back in small engines, one named test for each.

The numbers are those of the public threads in which the bugs were reported. The model is a pretend one
(`helpers.token_after`): its next token depends on every token before it and is read through the block tables,
so a wrong or stale block gives a wrong text.
"""

import pytest

from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import StepDraft
from tests.helpers import add, make_scheduler, run_to_end, step, token_after

BLOCK_SIZE = 4


def text_of(prompt, num_tokens):
    """The oracle: no cache, no blocks, one token after the other."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(token_after(tokens))
    return tokens[len(prompt) :]


def outputs_of(group):
    return group.seqs[0].output_token_ids


@pytest.mark.parametrize("num_blocks_of_prompt", [1, 2, 3])
def test_a_prefix_hit_on_a_whole_prompt_at_a_multiple_of_the_block_size(num_blocks_of_prompt):
    """nano-vllm 144. Would catch a hit which covers the whole prompt: no token is left to give logits."""
    prompt = list(range(num_blocks_of_prompt * BLOCK_SIZE))
    scheduler = make_scheduler(prefix_caching=True)
    add(scheduler, "first", prompt, 3)
    run_to_end(scheduler)
    second = add(scheduler, "second", prompt, 3)
    (row,) = step(scheduler).scheduled
    assert row.start == len(prompt) - BLOCK_SIZE, "all blocks but the last one are found"
    assert row.token_ids == tuple(prompt[row.start :])
    run_to_end(scheduler)
    assert outputs_of(second) == text_of(prompt, 3)
    assert scheduler.kv.pool.num_used == 0


def test_a_preempted_request_comes_back_as_a_prompt_and_not_as_a_decode():
    """nano-vllm 144. Would catch a plan that says "one more token" because the request has output already."""
    prompts = {"a": [1, 2, 3, 4, 5, 6], "b": [9, 8, 7, 6, 5, 4]}
    scheduler = make_scheduler(num_blocks=5)
    groups = {name: add(scheduler, name, prompt, 8) for name, prompt in prompts.items()}
    first_rows = {}
    for plan in run_to_end(scheduler):
        for row in plan.scheduled:
            if row.start == 0:
                first_rows.setdefault(row.request_id, []).append(row)
    again = first_rows["b"][1]
    assert scheduler.stats.num_preemptions == 1 and len(first_rows["b"]) == 2
    assert len(again.token_ids) > len(prompts["b"]), "its own output is part of what is computed again"
    assert list(again.token_ids) == (prompts["b"] + outputs_of(groups["b"]))[: len(again.token_ids)]
    for name, prompt in prompts.items():
        assert outputs_of(groups[name]) == text_of(prompt, 8)


def test_a_preempted_request_with_a_prefix_hit_recomputes_only_what_is_gone():
    """nano-vllm 207, 211. Would catch a request which computes cached blocks again, or skips too many."""
    scheduler = make_scheduler(num_blocks=8, prefix_caching=True)
    group = add(scheduler, "a", list(range(10)), 8)
    for _ in range(3):
        step(scheduler)
    scheduler.preempt(scheduler.running[-1], StepDraft(budget=0))
    num_tokens = len(group.seqs[0].token_ids)
    (row,) = step(scheduler).scheduled
    assert (row.start, row.num_tokens) == (num_tokens // BLOCK_SIZE * BLOCK_SIZE, num_tokens % BLOCK_SIZE)
    run_to_end(scheduler)
    assert scheduler.kv.pool.num_used == 0
    assert outputs_of(group) == text_of(range(10), 8)


def test_the_end_of_a_chunk_is_taken_for_neither_the_end_nor_the_start_of_the_sequence(make_engine):
    """nano-vllm 213. Would catch keys that end with the sequence, or that begin with the chunk."""
    texts, seen = [], []
    for budget in (11, 4):
        engine = make_engine(max_num_batched_tokens=budget, max_num_seqs=1)
        prepare_inputs = engine.runner.prepare_inputs

        def spy(plan, prepare_inputs=prepare_inputs, seen=seen):
            inputs = prepare_inputs(plan)
            (row,), metadata = plan.scheduled, inputs.metadata
            seen.append((row.num_samples, metadata.seq_lens.tolist(), metadata.query_start_loc.tolist()))
            return inputs

        engine.runner.prepare_inputs = spy
        engine.add_request(
            "a", list(range(11)), SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        )
        outputs = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        texts.append(outputs[-1].outputs[0].token_ids)
    assert texts[0] == texts[1]
    decodes = [(1, [12], [0, 1]), (1, [13], [0, 1])]
    whole, chunks = [(1, [11], [0, 11])], [(0, [4], [0, 4]), (0, [8], [0, 4]), (1, [11], [0, 3])]
    assert seen == whole + decodes + chunks + decodes


def test_two_requests_with_one_prefix_in_one_step_do_not_overwrite_the_cache_entry():
    """nano-vllm 219, kvcached 401. Would catch an entry which names the block of the request that left first."""
    prefix = list(range(8))
    scheduler = make_scheduler(prefix_caching=True)
    short, long = add(scheduler, "short", [*prefix, 50], 1), add(scheduler, "long", [*prefix, 60], 6)
    plan = step(scheduler)
    rows = {row.request_id: row for row in plan.scheduled}
    assert rows["short"].block_ids[:2] == rows["long"].block_ids[:2]
    assert rows["long"].start == len(prefix), "the prefix is computed once"
    assert "short" not in scheduler.groups and "long" in scheduler.groups
    third = add(scheduler, "third", [*prefix, 70], 4)
    assert next(row for row in step(scheduler).scheduled if row.request_id == "third").start == len(prefix)
    run_to_end(scheduler)
    for group, last, count in ((short, 50, 1), (long, 60, 6), (third, 70, 4)):
        assert outputs_of(group) == text_of([*prefix, last], count)
    assert scheduler.kv.pool.num_used == 0


def test_a_table_keeps_its_own_block_when_another_one_with_the_same_content_is_cached():
    """mini-sglang 142. Would catch a duplicate which is freed while a block table still points to it."""
    prompt = [3, 1]  # no full block: nothing is shared, and both requests fill equal blocks on their own
    scheduler = make_scheduler(prefix_caching=True)
    groups = [add(scheduler, name, prompt, 9) for name in "ab"]
    tables = {}
    for _ in range(6):
        for row in step(scheduler).scheduled:
            before = tables.setdefault(row.seq_id, row.block_ids)
            assert row.block_ids[: len(before)] == before, "a table of a running request has changed"
            tables[row.seq_id] = row.block_ids
    first, second = tables.values()
    assert not set(first) & set(second)
    run_to_end(scheduler)
    assert [outputs_of(group) for group in groups] == [text_of(prompt, 9)] * 2
    later = add(scheduler, "later", prompt + text_of(prompt, 9), 2)
    assert step(scheduler).scheduled[0].start == 8
    run_to_end(scheduler)
    assert outputs_of(later) == text_of(prompt, 11)[9:]

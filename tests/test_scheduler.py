"""The scheduler without a model: budgets, order, preemption, forks, swaps, random histories."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.sequence import SequenceStatus
from tests.helpers import add, check_invariants, make_scheduler, run_model, run_to_end, step, token_after


def greedy(prompt, num_tokens):
    """What the pretend model says to a prompt on its own."""
    tokens = list(range(prompt)) if isinstance(prompt, int) else list(prompt)
    start = len(tokens)
    for _ in range(num_tokens):
        tokens.append(token_after(tokens))
    return tokens[start:]


def computed_now(plan):
    return [(row.request_id, row.start, row.num_tokens) for row in plan.scheduled]


def test_decoding_and_prefill_share_one_step():
    """Would catch prompt-only batches, which stall every request that is generating."""
    scheduler = make_scheduler()
    add(scheduler, "a", 5)
    step(scheduler)
    add(scheduler, "b", 6)
    assert computed_now(step(scheduler)) == [("a", 5, 1), ("b", 0, 6)]


def test_a_long_prompt_is_computed_in_chunks_under_the_budget():
    """Would catch ignoring the budget, and a chunk that samples before the prompt is complete."""
    scheduler = make_scheduler(max_num_batched_tokens=8)
    group = add(scheduler, "long", 20)
    samples = []
    for start, count in [(0, 8), (8, 8), (16, 4)]:
        plan = step(scheduler)
        assert computed_now(plan) == [("long", start, count)]
        samples.append(plan.scheduled[0].num_samples)
    assert samples == [0, 0, 1]
    assert group.seqs[0].num_output_tokens == 1


def test_running_requests_come_before_waiting_ones():
    """Would catch a long prompt that takes the budget from a running request."""
    scheduler = make_scheduler(max_num_batched_tokens=8)
    add(scheduler, "a", 4)
    step(scheduler)
    add(scheduler, "b", 20)
    assert computed_now(step(scheduler)) == [("a", 4, 1), ("b", 0, 7)]


def test_the_head_of_the_line_is_not_skipped():
    """Would catch admitting a short request past a long one that does not fit: it would starve."""
    scheduler = make_scheduler(num_blocks=4, max_num_batched_tokens=64)
    add(scheduler, "a", 8, max_tokens=4)
    step(scheduler)
    add(scheduler, "big", 12, max_tokens=2)
    add(scheduler, "small", 2, max_tokens=2)
    assert [name for name, _, _ in computed_now(step(scheduler))] == ["a"]


def test_max_num_seqs_limits_how_many_run():
    """Would catch a limit on requests admitted per step instead of on sequences running."""
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        add(scheduler, name, 3, max_tokens=2)
    assert len(step(scheduler).scheduled) == 2
    run_to_end(scheduler)


def test_n_completions_take_n_seats_from_the_start():
    """Would catch admitting a group as one sequence that then forks past max_num_seqs."""
    scheduler = make_scheduler(max_num_seqs=4)
    add(scheduler, "a", 3, n=3)
    add(scheduler, "b", 3, n=2)
    assert [name for name, _, _ in computed_now(step(scheduler))] == ["a"]
    run_to_end(scheduler)


def test_without_chunking_a_prompt_waits_until_it_fits_whole():
    """Would catch enable_chunked_prefill=False that still cuts prompts."""
    scheduler = make_scheduler(max_num_batched_tokens=16, enable_chunked_prefill=False)
    add(scheduler, "a", 9, max_tokens=3)
    add(scheduler, "b", 10, max_tokens=3)
    plans = run_to_end(scheduler)
    assert computed_now(plans[0]) == [("a", 0, 9)]
    assert computed_now(plans[1]) == [("a", 9, 1), ("b", 0, 10)]


def test_the_newest_request_is_preempted_and_everyone_finishes_with_the_same_tokens():
    """Would catch preempting the oldest (no progress), losing output tokens, or losing blocks."""
    scheduler = make_scheduler(num_blocks=5)
    groups = [add(scheduler, name, prompt, max_tokens=8) for name, prompt in [("a", 7), ("b", 6), ("c", 5)]]
    plans = run_to_end(scheduler)
    victims = [name for plan in plans for name in plan.preempted]
    assert victims and "a" not in victims
    assert scheduler.stats.num_preemptions == len(victims)
    for group, prompt in zip(groups, [7, 6, 5], strict=True):
        assert group.seqs[0].output_token_ids == greedy(prompt, 8)
    assert scheduler.kv.pool.num_used == 0


def test_no_group_is_admitted_in_a_step_that_preempted():
    """Would catch handing the blocks just taken from one request to another newcomer."""
    scheduler = make_scheduler(num_blocks=5)
    for name, prompt in [("a", 7), ("b", 7), ("c", 1)]:
        add(scheduler, name, prompt, max_tokens=8)
    for plan in run_to_end(scheduler):
        newcomers = [row for row in plan.scheduled if row.start == 0]
        assert not (plan.preempted and newcomers)


def test_a_preempted_request_resumes_before_those_that_waited():
    """Would catch putting the victim at the end of the line."""
    scheduler = make_scheduler(num_blocks=4, max_num_seqs=2)
    for name in "abc":
        add(scheduler, name, 6, max_tokens=6)
    order = []
    for plan in run_to_end(scheduler):
        order += [row.request_id for row in plan.scheduled if row.start == 0]
    assert order[:2] == ["a", "b"]
    assert order.index("c") > len(order) - 1 - order[::-1].index("b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 60}, r"may need 18 KV blocks of 4 tokens \(1 x up to 70 tokens, prompt 10\), but the "
                             r"pool has 16 blocks"),
        ({"n": 9, "max_tokens": 1}, r"asks for 9 sequences at once, but max_num_seqs=8"),
        ({"n": 8, "max_tokens": 20}, r"may need 50 KV blocks .*8 x up to 30"),
    ],
)  # fmt: skip
def test_a_request_that_can_never_fit_is_refused_with_the_numbers(options, message):
    """Would catch a request that waits forever, and a refusal that leaves it queued."""
    scheduler = make_scheduler()
    with pytest.raises(ValueError, match=message):
        add(scheduler, "a", 10, **options)
    assert not scheduler.has_unfinished


def test_an_id_in_use_is_refused():
    """Would catch the second request replacing the first, whose blocks are then never freed."""
    scheduler = make_scheduler()
    add(scheduler, "a", 3)
    with pytest.raises(ValueError, match="request_id 'a' is in use"):
        add(scheduler, "a", 3)
    run_to_end(scheduler)


def test_stop_token_max_tokens_and_stop_reason():
    """Would catch EOS reported as a stop token, and a stop token that is ignored at the first position."""
    first = token_after(range(4))
    scheduler = make_scheduler()
    eos = add(scheduler, "eos", 4, stop_token_ids=[first])
    eos.eos_token_ids = frozenset([first])
    stop = add(scheduler, "stop", 4, stop_token_ids=[first])
    late = add(scheduler, "late", 4, stop_token_ids=[first], min_tokens=2, max_tokens=3)
    run_to_end(scheduler)
    assert (eos.seqs[0].status.finish_reason, eos.seqs[0].stop_reason) == ("stop", None)
    assert (stop.seqs[0].status.finish_reason, stop.seqs[0].stop_reason) == ("stop", first)
    assert late.seqs[0].status.finish_reason == "length"
    assert [group.seqs[0].num_output_tokens for group in (eos, stop, late)] == [1, 1, 3]


@pytest.mark.parametrize("when", ["waiting", "running", "prefilling", "swapped", "forked"])
def test_abort_frees_everything_at_any_moment(when):
    """Would catch an abort that knows only one of the queues, or only the first sequence of a group."""
    options = {"num_cpu_blocks": 16, "preemption_mode": "swap"} if when == "swapped" else {}
    scheduler = make_scheduler(num_blocks=8, max_num_batched_tokens=8, **options)
    group = add(
        scheduler, "a", 12 if when == "prefilling" else 6, max_tokens=4, n=3 if when == "forked" else 1
    )
    if when != "waiting":
        step(scheduler)
    if when == "swapped":
        scheduler.preempt(scheduler.running[-1], _Any())
        assert group.seqs[0].status is SequenceStatus.SWAPPED
    assert scheduler.abort("a") is group
    check_invariants(scheduler)
    assert scheduler.kv.pool.num_used == scheduler.kv.cpu_pool.num_used == 0
    assert not scheduler.has_unfinished
    assert {seq.status.finish_reason for seq in group.seqs} == {"abort"}
    assert scheduler.abort("a") is None


class _Any:
    """Stands in for the step in the test above."""

    def __init__(self):
        self.preempted, self.swap_out = [], []


def test_n_completions_store_the_prompt_once():
    """Would catch a fork that copies: 4 x 3 blocks instead of 3."""
    scheduler = make_scheduler(num_blocks=32)
    group = add(scheduler, "a", 11, n=4, max_tokens=6)
    step(scheduler)
    assert len(group.seqs) == 4
    assert scheduler.kv.pool.num_used == 3
    plan = step(scheduler)
    assert len(plan.blocks_to_copy) == 3, "the partial block is copied for all but the last writer"
    assert scheduler.kv.pool.num_used == 2 + 4
    run_to_end(scheduler)
    assert scheduler.stats.num_copied_blocks == 3


def test_a_preempted_group_gets_its_sharing_back():
    """Would catch n completions that come back from recompute n times as large, and then do not fit."""
    scheduler = make_scheduler(num_blocks=10, max_num_batched_tokens=64)
    add(scheduler, "first", 4, max_tokens=20)
    group = add(scheduler, "n", 13, n=3, max_tokens=8)
    plans = run_to_end(scheduler)
    assert "n" in [name for plan in plans for name in plan.preempted]
    restarts = [row for plan in plans for row in plan.scheduled if row.request_id == "n" and row.start == 0]
    assert all(row.num_tokens == 13 for row in restarts), "the leader computes the prompt alone"
    assert len(restarts) == scheduler.stats.num_preemptions + 1
    assert all(seq.num_output_tokens == 8 for seq in group.seqs)


def test_a_group_samples_all_together_or_not_at_all():
    """Would catch beams of different length, which cannot be compared with each other."""
    scheduler = make_scheduler(num_blocks=40, max_num_batched_tokens=9, max_num_seqs=8)
    add(scheduler, "first", 4, max_tokens=30)
    group = add(scheduler, "beams", 9, beam_width=3, max_tokens=12)
    while scheduler.has_unfinished:
        plan = step(scheduler)
        lengths = {len(seq) for seq in group.unfinished}
        assert len(lengths) <= 1
        if plan.step == 8:
            scheduler.preempt(group, _Any())  # with recompute it has to catch up under a small budget


def test_swapping_brings_a_group_back_without_computing_it_again():
    """Would catch swap that falls back to recompute, or restores the wrong number of tokens."""
    scheduler = make_scheduler(num_blocks=6, num_cpu_blocks=16, preemption_mode="swap")
    groups = [add(scheduler, name, 7, max_tokens=9) for name in "ab"]
    plans = run_to_end(scheduler)
    assert scheduler.stats.num_preemptions > 0
    assert scheduler.stats.num_swapped_out_blocks == scheduler.stats.num_swapped_in_blocks > 0
    assert sum(row.start == 0 for plan in plans for row in plan.scheduled) == 2, "each prompt computed once"
    assert not any(plan.blocks_to_swap_in and plan.blocks_to_swap_out for plan in plans)
    for group in groups:
        assert group.seqs[0].output_token_ids == greedy(7, 9)


def test_a_swap_that_does_not_fit_becomes_recompute_with_a_warning(caplog):
    """Would catch vLLM v0.1's RuntimeError here, a hang, or a silent fallback."""
    scheduler = make_scheduler(num_blocks=6, num_cpu_blocks=1, preemption_mode="swap")
    groups = [add(scheduler, name, 7, max_tokens=9) for name in "ab"]
    with caplog.at_level(logging.WARNING):
        run_to_end(scheduler)
    assert "is preempted by recompute: the swap space (1 blocks, 1 free) is too small" in caplog.text
    for group in groups:
        assert group.seqs[0].output_token_ids == greedy(7, 9)


def test_the_same_prompt_twice_in_one_step_is_computed_once():
    """Would catch duplicate blocks for requests that arrive together (the common system prompt)."""
    scheduler = make_scheduler(num_blocks=16, prefix_caching=True, max_num_batched_tokens=64)
    first = add(scheduler, "a", 10)
    second = add(scheduler, "b", 10)
    plan = step(scheduler)
    assert computed_now(plan) == [("a", 0, 10), ("b", 8, 2)]
    assert plan.scheduled[0].block_ids[:2] == plan.scheduled[1].block_ids[:2]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    run_to_end(scheduler)
    assert first.seqs[0].output_token_ids == second.seqs[0].output_token_ids == greedy(10, 8)


@pytest.mark.parametrize(("prefix_caching", "computed"), [(True, 15), (False, 27)])
def test_a_preempted_request_finds_its_own_blocks_again(prefix_caching, computed):
    """Would catch a hit after preemption that is not used, or one that is counted as a cached prompt.

    b is preempted when 12 of its tokens are computed. Its blocks are still there when it comes back.
    """
    scheduler = make_scheduler(num_blocks=7, prefix_caching=prefix_caching)
    prompts = [("a", range(9)), ("b", range(50, 59))]
    _, group = [add(scheduler, name, prompt, max_tokens=7) for name, prompt in prompts]
    plans = run_to_end(scheduler)
    assert [name for plan in plans for name in plan.preempted] == ["b"]
    assert (
        sum(row.num_tokens for plan in plans for row in plan.scheduled if row.request_id == "b") == computed
    )
    assert group.num_cached_tokens == 0
    assert group.seqs[0].output_token_ids == greedy(range(50, 59), 7)


def test_prompt_logprobs_are_not_taken_from_the_cache():
    """Would catch a hit that skips positions whose logits were asked for."""
    scheduler = make_scheduler(num_blocks=16, prefix_caching=True)
    add(scheduler, "a", 9, max_tokens=1)
    run_to_end(scheduler)
    add(scheduler, "b", 9, max_tokens=1, prompt_logprobs=0)
    assert computed_now(step(scheduler)) == [("b", 0, 9)]


requests = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.integers(1, 14),
            "same": st.booleans(),  # begins like the others, or not
            "max_tokens": st.integers(1, 9),
            "n": st.sampled_from([1, 1, 1, 2, 3]),
            "beam": st.booleans(),
            "arrives": st.integers(0, 12),
            "aborted": st.sampled_from([None, None, None, 1, 4, 9]),
            "stop": st.booleans(),
        }
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=250, deadline=None)
@given(
    requests=requests,
    num_blocks=st.integers(8, 20),
    block_size=st.sampled_from([1, 2, 4]),
    budget=st.integers(4, 24),
    prefix_caching=st.booleans(),
    swap_blocks=st.sampled_from([None, 2, 30]),
)
def test_any_history_keeps_the_invariants_and_ends_with_all_blocks_free(
    requests, num_blocks, block_size, budget, prefix_caching, swap_blocks
):
    """Random arrivals, forks, beams, aborts, preemptions, swaps: would catch what was not thought of.

    Every plain request must end with exactly the tokens it gets when it is alone.
    """
    scheduler = make_scheduler(
        num_blocks,
        block_size,
        num_cpu_blocks=swap_blocks or 0,
        prefix_caching=prefix_caching,
        max_num_seqs=4,
        max_num_batched_tokens=budget,
        preemption_mode="swap" if swap_blocks else "recompute",
    )
    groups = {}
    for now in range(600):
        for index, request in enumerate(requests):
            if request["arrives"] == now:
                start = 0 if request["same"] else 100 * index
                prompt = range(start, start + request["prompt"])
                stop = [token_after([*prompt, token_after(prompt)])] if request["stop"] else []
                shape = {"beam_width": request["n"]} if request["beam"] else {"n": request["n"]}
                try:
                    groups[index] = add(
                        scheduler, index, prompt, request["max_tokens"], stop_token_ids=stop, **shape
                    )
                except ValueError as error:
                    assert "may need" in str(error)
            if request["aborted"] is not None and request["arrives"] + request["aborted"] == now:
                scheduler.abort(str(index))
        if now > 12 and not scheduler.has_unfinished:
            break
        if scheduler.has_unfinished:
            step(scheduler)
    assert not scheduler.has_unfinished, "a request never finished"
    assert scheduler.kv.pool.num_used == scheduler.kv.cpu_pool.num_used == 0
    for index, group in groups.items():
        request = requests[index]
        plain = request["n"] == 1 and not request["beam"]
        if plain and group.seqs[0].status is not SequenceStatus.FINISHED_ABORTED:
            prompt = group.seqs[0].token_ids[: request["prompt"]]
            expected = greedy(prompt, group.seqs[0].num_output_tokens)
            assert group.seqs[0].output_token_ids == expected


def test_run_model_depends_on_the_whole_past():
    """Negative control of every comparison with `greedy`: another past gives another token."""
    scheduler = make_scheduler()
    add(scheduler, "a", 5)
    plan = scheduler.schedule()
    (output,) = run_model(scheduler, plan)
    assert output.token_ids == ((token_after(range(5)),),)
    assert token_after([1, 2, 3]) != token_after([2, 2, 3]) != token_after([2, 3])
    scheduler.update_from_output(plan, [output])
    run_to_end(scheduler)

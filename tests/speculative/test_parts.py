"""The parts of speculative decoding one by one: n-grams, the speculator's plan, what is accepted, the settings."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import EngineConfig
from minivllm.outputs import SequenceOutput, TokenLogprobs
from minivllm.sampling_params import SamplingParams
from minivllm.scheduler_output import SamplingMetadata, ScheduledSequence
from minivllm.speculative.break_even import break_even, largest_ratio, speedup, tokens_per_step
from minivllm.speculative.config import SpeculativeConfig, speculation_of
from minivllm.speculative.ngram import propose_ngram, propose_ngram_reference
from minivllm.speculative.speculator import LONGEST_REST, Speculator
from minivllm.speculative.verification import accept, sampled_rows
from tests.helpers import add, make_scheduler, run_model

NGRAM = {"method": "ngram", "num_speculative_tokens": 4}

# -- n-grams ----------------------------------------------------------------------------------------

# Few tokens, so that they repeat; and such as have one byte pattern across two neighbours (0x0100 and 0x0001).
TOKENS = st.lists(st.sampled_from([0, 1, 256, 65536, 16777216]), min_size=1, max_size=40)


@given(TOKENS, st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=300)
def test_ngram_drafts_equal_the_slow_search(tokens, count, one, other):
    """Would catch a match that lies across two tokens, the earliest place instead of the latest, a short copy."""
    arguments = tokens, count, max(one, other), min(one, other)
    assert propose_ngram(*arguments) == propose_ngram_reference(*arguments)


def test_the_longest_ngram_wins_and_the_latest_place():
    """Would catch a search which begins with the shortest: after "1 2 3" stands 9, after the last "3" an 8."""
    tokens = [1, 2, 3, 9, 1, 2, 3, 7, 3, 8, 1, 2, 3]
    assert propose_ngram(tokens, 3, longest=3) == (7, 3, 8)
    assert propose_ngram(tokens, 3, longest=1) == (8, 1, 2)
    assert propose_ngram(tokens, 3, longest=4, shortest=4) == ()


def test_a_copy_runs_into_itself():
    """Would catch drafts that end where the text ends: after 5 6 5 6 only two would be left."""
    assert propose_ngram([1, 5, 6, 5, 6], 5, longest=2) == (5, 6, 5, 6, 5)


@pytest.mark.parametrize("tokens", [[], [3], [1, 2, 3]])
def test_without_a_repetition_there_are_no_drafts(tokens):
    """Would catch an n-gram that is found at the very end, which is itself."""
    assert propose_ngram(tokens, 4, longest=4) == ()


# -- what is accepted -------------------------------------------------------------------------------


def chosen(*tokens):
    """Outputs of a sampler at consecutive positions."""
    return [SequenceOutput(((token,),), ((TokenLogprobs(token, -0.5 * token, 1, ()),),)) for token in tokens]


@pytest.mark.parametrize(
    ("drafts", "tokens", "run"),
    [
        ((), (5,), (5,)),
        ((5, 6, 7), (5, 6, 7, 8), (5, 6, 7, 8)),
        ((5, 6, 7), (5, 9, 7, 8), (5, 9)),
        ((5, 6, 7), (4, 6, 7, 8), (4,)),
    ],
)
def test_a_run_ends_with_the_first_token_that_is_no_draft(drafts, tokens, run):
    """Would catch a draft accepted behind a rejected one: it was judged after a text that is not there."""
    output = accept(drafts, chosen(*tokens))
    assert output.token_ids == (run,)
    assert [entry.token_id for entry in output.logprobs[0]] == list(run)


def test_each_position_is_sampled_with_its_own_history():
    """Would catch penalties that do not see the drafts, and one random number for all positions."""
    params = SamplingParams(repetition_penalty=1.5)
    sampling = SamplingMetadata(params, 1, seed=3, position=4, num_prompt_tokens=2, token_ids=(1, 2, 3, 4))
    row = ScheduledSequence("a", 0, 3, (4,), (0, 1), sampling, draft_token_ids=(8, 9), num_drafts=2)
    at = [each.sampling for each in sampled_rows(row)]
    assert [each.position for each in at] == [4, 5, 6]
    assert [each.token_ids for each in at] == [(1, 2, 3, 4), (1, 2, 3, 4, 8), (1, 2, 3, 4, 8, 9)]
    assert [each.output_token_ids for each in at] == [(3, 4), (3, 4, 8), (3, 4, 8, 9)]


# -- the plan ---------------------------------------------------------------------------------------


def speculating(**options):
    config = NGRAM | {"prompt_lookup_min": 1} | options.pop("config", {})
    return make_scheduler(speculator=Speculator(SpeculativeConfig(**config)), **options)


def drafts_of(plan):
    return {row.request_id: row.draft_token_ids for row in plan.scheduled}


def test_drafts_get_what_is_left_of_the_budget():
    """Would catch drafts that take the tokens of a group behind them: B's prompt is whole, then A's drafts come."""
    scheduler = speculating(max_num_batched_tokens=12)
    add(scheduler, "a", [1, 2, 1, 2, 1, 2], max_tokens=9)
    add(scheduler, "b", [5, 6, 7], max_tokens=9)
    plan = scheduler.schedule()
    assert [(row.request_id, len(row.token_ids)) for row in plan.scheduled] == [("a", 6), ("b", 3)]
    assert drafts_of(plan) == {"a": (1, 2, 1), "b": ()}
    assert plan.num_scheduled_tokens == 12


def test_a_step_with_many_tokens_has_no_drafts():
    """Would catch speculation under load, where each token costs its full price (vLLM's issue 19254)."""
    scheduler = speculating(config={"max_tokens_per_step": 8})
    add(scheduler, "a", [1, 2, 1, 2, 1, 2], max_tokens=9)
    assert drafts_of(scheduler.schedule()) == {"a": (1, 2)}
    other = speculating(config={"max_tokens_per_step": 6})
    add(other, "a", [1, 2, 1, 2, 1, 2], max_tokens=9)
    assert drafts_of(other.schedule()) == {"a": ()}


def test_drafts_never_preempt():
    """Would catch a guess which costs another group its blocks: here no block is free for drafts."""
    scheduler = speculating(num_blocks=3, block_size=4)
    add(scheduler, "a", [1, 2, 1, 2, 1, 2, 1, 2], max_tokens=3)
    add(scheduler, "b", [7], max_tokens=3)
    plan = scheduler.schedule()
    assert drafts_of(plan) == {"a": (), "b": ()}
    assert not plan.preempted


def test_drafts_do_not_reach_beyond_the_end():
    """Would catch slots beyond max_num_tokens, which the check of `add` has not counted: 1 + drafts <= max_tokens."""
    for max_tokens in range(1, 6):
        scheduler = speculating()
        add(scheduler, "a", [1, 2, 1, 2, 1, 2], max_tokens=max_tokens)
        assert len(drafts_of(scheduler.schedule())["a"]) == max_tokens - 1


def test_n_first_tokens_of_one_prompt_get_no_drafts():
    """Would catch one draft for n texts; they have drafts from the next step on, each its own."""
    scheduler = speculating()
    add(scheduler, "a", [1, 2, 1, 2, 1, 2], n=2)
    plan = scheduler.schedule()
    assert drafts_of(plan) == {"a": ()}
    scheduler.update_from_output(plan, [SequenceOutput(((1,), (2,)))])
    assert [row.draft_token_ids for row in scheduler.schedule().scheduled] == [(2, 1, 2, 1), (2, 2, 2, 2)]
    scheduler.abort("a")


def test_misses_make_a_sequence_rest_and_a_hit_ends_it():
    """Would catch a guess in each step of a text that cannot be guessed, and a rest that never ends."""
    scheduler = speculating(num_blocks=64)
    (seq,) = add(scheduler, "a", [1, 1], max_tokens=200).seqs
    speculator, lengths = scheduler.speculator, []
    for _ in range(8):
        speculator.note(seq, num_accepted=0)
        lengths.append(seq.draft_from - len(seq) - 1)
    assert lengths == [1, 2, 4, 8, 16, 32, LONGEST_REST, LONGEST_REST]
    speculator.note(seq, num_accepted=2)
    assert seq.draft_from == len(seq) + 3
    speculator.note(seq, num_accepted=0)
    assert seq.draft_from == len(seq) + 1 + 1


def test_blocks_are_named_only_when_their_drafts_are_accepted():
    """Would catch a prefix hit on a rejected draft: the second prompt is just what the first one guessed wrongly."""
    scheduler = speculating(prefix_caching=True, num_blocks=32)
    add(scheduler, "a", [1, 2, 3, 1, 2, 3, 1], max_tokens=9)
    plan = scheduler.schedule()
    assert drafts_of(plan) == {"a": (2, 3, 1, 2)}
    add(scheduler, "b", [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1], max_tokens=2)
    scheduler.update_from_output(plan, [SequenceOutput(((2, 9),))])  # 2 is right, 3 is not
    assert [row.start for row in scheduler.schedule().scheduled] == [8, 8]  # b hits [0, 8), not [0, 12)
    scheduler.abort("a")
    scheduler.abort("b")
    assert scheduler.kv.pool.num_used == 0


def test_a_stop_token_in_the_middle_of_a_run_ends_it():
    """Would catch tokens behind a stop token, and a full block of the run that no later prompt finds."""
    scheduler = speculating(prefix_caching=True, num_blocks=32)
    group = add(scheduler, "a", [1, 2, 3, 1, 2, 3, 1], max_tokens=9, stop_token_ids=[3])
    plan = scheduler.schedule()
    scheduler.update_from_output(plan, [SequenceOutput(((2, 3, 1, 2, 5),))])
    assert group.seqs[0].output_token_ids == [2, 3]
    assert group.seqs[0].status.finish_reason == "stop"
    assert scheduler.kv.pool.num_used == 0
    seq = add(scheduler, "b", [1, 2, 3, 1, 2, 3, 1, 2, 3], max_tokens=2).seqs[0]
    assert len(scheduler.kv.get_computed_blocks(seq, 8)) == 2  # positions 4 to 7: one of them was a draft
    assert scheduler.stats.num_accepted_tokens_per_pos == [1, 1, 1, 1]


def test_a_scheduler_without_a_speculator_has_no_drafts():
    """Negative control of the tests above."""
    scheduler = make_scheduler()
    add(scheduler, "a", [1, 2, 1, 2, 1, 2], max_tokens=9)
    plan = scheduler.schedule()
    assert drafts_of(plan) == {"a": ()}
    scheduler.update_from_output(plan, run_model(scheduler, plan))
    assert scheduler.stats.num_drafts == 0


# -- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"method": "eagle", "num_speculative_tokens": 2},
            "method must be one of ngram, draft_model, got 'eagle'",
        ),
        ({"method": "ngram"}, "missing num_speculative_tokens"),
        (NGRAM | {"k": 3}, "unknown k"),
        (NGRAM | {"num_speculative_tokens": 0}, "num_speculative_tokens must be at least 1"),
        (NGRAM | {"num_speculative_tokens": True}, "num_speculative_tokens must be an int"),
        (NGRAM | {"prompt_lookup_max": 2, "prompt_lookup_min": 3}, r"prompt_lookup_min \(3\) is above"),
        (NGRAM | {"model": "x"}, "needs a model"),
        ({"method": "draft_model", "num_speculative_tokens": 2}, "needs a model"),
        (
            {"method": "draft_model", "model": "x", "num_speculative_tokens": 2, "prompt_lookup_max": 2},
            "belong to the method",
        ),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(options, text):
    """Would catch a typo that silently does nothing, and a key of the other method."""
    with pytest.raises((TypeError, ValueError), match=text):
        speculation_of(EngineConfig("m", speculative_config=options))
    assert speculation_of(EngineConfig("m")) is None


@pytest.mark.parametrize(
    ("lookup", "longest", "shortest"),
    [({}, 4, 2), ({"max": 1}, 1, 1), ({"min": 3}, 3, 3), ({"max": 5, "min": 1}, 5, 1)],
)
def test_lookup_lengths_that_are_left_out(lookup, longest, shortest):
    """Would catch a minimum above the maximum when only one is given."""
    config = SpeculativeConfig(**NGRAM, **{f"prompt_lookup_{key}": value for key, value in lookup.items()})
    assert (config.longest, config.shortest) == (longest, shortest)


# -- when drafts pay --------------------------------------------------------------------------------


def test_the_yield_of_a_step_is_what_a_simulation_gives():
    """Would catch a sum that leaves out the model's own token, or counts drafts behind a wrong one."""
    r = random.Random(0)
    for acceptance, num_drafts in ((0.3, 2), (0.8, 4), (1.0, 3), (0.0, 3)):
        total = 0
        for _ in range(20_000):
            rights = [r.random() < acceptance for _ in range(num_drafts)]
            total += 1 + ([*rights, False]).index(False)
        assert total / 20_000 == pytest.approx(tokens_per_step(acceptance, num_drafts), abs=0.05)


@pytest.mark.parametrize(
    ("cost", "expected"), [(1.0, 0.0), (1.25, 0.2), (1.5, 0.34), (2.0, 0.52), (3.0, 0.74), (5.0, 1.0)]
)
def test_the_break_even_is_where_nothing_is_gained(cost, expected):
    """Would catch the table of the docstring being wrong."""
    found = break_even(4, cost)
    assert found == pytest.approx(expected, abs=0.005)
    assert speedup(found, 4, cost) == pytest.approx(1.0)
    assert speedup(min(1.0, found + 0.1), 4, cost) >= 1.0


def test_a_draft_model_that_costs_too_much_has_no_break_even():
    """Would catch a threshold above 1 that is reported as if it could be reached."""
    assert break_even(4, 5.1) == float("inf")
    limit = largest_ratio(0.8, 4, 2.0)
    assert speedup(0.8, 4, 2.0, limit) == pytest.approx(1.0)
    assert break_even(4, 2.0, limit) == pytest.approx(0.8)
    assert break_even(4, 2.0, 0.61) == float("inf")

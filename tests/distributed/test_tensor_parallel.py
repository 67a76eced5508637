"""Two and three workers give the texts of one, whatever the scheduler does meanwhile. Real processes.

Sums of floats depend on how many terms are added where, so logits differ in the last bits between sizes. A
greedy choice between two tokens whose logits tie may go either way; `count_ties` allows just that, and counts.
"""

import random
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from minivllm import BeamSearchParams, SamplingParams
from minivllm.baselines.no_cache import greedy_without_cache, hugging_face_logits, llama_logits
from minivllm.distributed import parallel_layers
from minivllm.distributed.drafts import DraftsOfRankZero
from minivllm.distributed.worker import Worker
from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput
from minivllm.weights.random_model import FAMILIES, random_llama
from tests.distributed.conftest import SHAPE
from tests.helpers_ranks import on_ranks
from tests.test_any_history import alone, assert_same, everything, play, random_options

SIZES = [2, 3]
PROMPTS = [list(range(40, 40 + length)) for length in (6, 1, 13, 9, 22, 22)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=3, n=3, max_tokens=9, logprobs=2, ignore_eos=True),
    SamplingParams(repetition_penalty=1.3, frequency_penalty=0.5, seed=5, max_tokens=15, ignore_eos=True),
    SamplingParams(temperature=0.9, top_p=0.8, prompt_logprobs=1, max_tokens=10, ignore_eos=True),  # no seed
    BeamSearchParams(beam_width=3, max_tokens=6, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
]
SCENARIOS = {
    "roomy": ({}, "num_copied_blocks"),
    "chunked": ({"max_num_batched_tokens": 16, "max_num_seqs": 16}, "prefix_cache_hits"),
    "recompute": ({"num_blocks": 18, "enable_prefix_caching": False}, "num_preemptions"),
    "swap": (
        {"num_blocks": 18, "preemption_mode": "swap", "swap_space_bytes": 1 << 20},
        "num_swapped_in_blocks",
    ),
}
TIE = 1e-4


def run(engine):
    """All requests, the last one when the fifth's prompt, which is equal, is in the prefix cache."""
    outputs = {}
    for index, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        if index == 5:
            for _ in range(5):
                outputs |= {output.request_id: output for output in engine.step()}
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    return [outputs[str(index)] for index in range(len(PROMPTS))]


def tokens(output):
    return [completion.token_ids for completion in output.outputs]


def count_ties(got, want, prompt, next_logits):
    """0 if the greedy texts are equal, 1 if they part where two logits tie; AssertionError otherwise."""
    if got == want:
        return 0
    place = next(i for i, pair in enumerate(zip(got, want, strict=True)) if pair[0] != pair[1])
    logits = next_logits(prompt + want[:place])
    assert abs(logits[got[place]] - logits[want[place]]) < TIE, (place, got, want)
    return 1


@pytest.fixture(scope="module")
def alike(make_whole):
    """What one process gives, and its logits: by model."""
    results = {}

    def of(model):
        if model not in results:
            engine = make_whole(model)
            results[model] = run(engine), llama_logits(engine.runner.model)
        return results[model]

    return of


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_texts_are_those_of_one_process(make_parallel, alike, divisible, size, scenario):
    """Would catch a rank that misses a copy or a swap, or takes a preempted request for one that decodes
    (nano-vllm #144). Greedy, seeded and unseeded, n = 3, beams, log-probabilities of prompt and output."""
    options, happened = SCENARIOS[scenario]
    engine = make_parallel(size, **options)
    want, next_logits = alike(divisible)
    got, ties = run(engine), 0
    for prompt, params, one, many in zip(PROMPTS, PARAMS, want, got, strict=True):
        if isinstance(params, SamplingParams) and params.temperature == 0:
            ties += count_ties(tokens(many)[0], tokens(one)[0], prompt, next_logits)
        else:
            assert tokens(many) == tokens(one)
    assert ties == 0, "no greedy step of these prompts is so close: the gap of the two best was looked at"
    assert got[1].outputs[0].logprobs[3].keys() == want[1].outputs[0].logprobs[3].keys()
    for one, many in zip(want[3].prompt_logprobs[1:], got[3].prompt_logprobs[1:], strict=True):
        assert {token: x.logprob for token, x in many.items()} == pytest.approx(
            {token: x.logprob for token, x in one.items()}, abs=1e-4
        )
    assert getattr(engine.stats(), happened) > 0


@pytest.mark.parametrize("size", SIZES)
def test_a_tied_model_in_two_files_gives_the_texts_of_hugging_face(make_parallel, divisible_tied, size):
    """Would catch a head that is not the rank's part of the embedding. Oracle: transformers, no cache."""
    oracle = hugging_face_logits(AutoModelForCausalLM.from_pretrained(divisible_tied, dtype=torch.float32))
    engine = make_parallel(size, divisible_tied)
    got = run(engine)
    for index in (0, 5):
        want = greedy_without_cache(oracle, PROMPTS[index], 12)
        assert count_ties(tokens(got[index])[0], want, PROMPTS[index], oracle) == 0


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_relative_on_two_ranks_gives_the_texts_of_hugging_face(make_parallel, tmp_path, family):
    """Would catch biases of Q, K and V which are not divided with their rows, and head norms which are."""
    shape = SHAPE | {"attention_bias": False, "mlp_bias": False} | FAMILIES[family]
    folder = random_llama(tmp_path / family, **shape)
    oracle = hugging_face_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    got = run(make_parallel(2, folder))
    for index in (0, 5):
        want = greedy_without_cache(oracle, PROMPTS[index], 12)
        assert count_ties(tokens(got[index])[0], want, PROMPTS[index], oracle) == 0


def test_a_difference_that_is_no_tie_is_refused():
    """Negative control of `count_ties`: another token, and all zeros."""
    logits = torch.tensor([0.0, 5.0, 5.0, 1.0])
    assert count_ties([1, 2], [1, 1], [0], lambda ids: logits) == 1
    for wrong in ([1, 3], [0, 0]):
        with pytest.raises(AssertionError):
            count_ties(wrong, [1, 1], [0], lambda ids: logits)


def decode_plan(step, num_rows=3):
    """Each row computes one token at position 0; the next is drawn with the row's seed."""
    from minivllm.scheduler_output import SamplingMetadata

    params = SamplingParams(temperature=1.0, logprobs=5)
    return SchedulerOutput(
        step,
        tuple(
            ScheduledSequence(
                str(row), row, 0, (row + 65,), (row,), SamplingMetadata(params, 1, seed=row, position=1,
                                                                        num_prompt_tokens=1)
            )
            for row in range(num_rows)
        ),
    )  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_samples_the_same_and_says_what_it_sent(make_parallel, groups, size):
    """Would catch a sampler that differs between ranks (mini-sglang #88), and a sum too many or too few."""
    engine, group = make_parallel(size), groups[size]
    before = group.call("traffic")
    outputs = group.call("execute_model", decode_plan(1), from_all=True)
    plan_nbytes = group.plan_nbytes
    after = group.call("traffic")
    assert len(outputs) == size and outputs == [outputs[0]] * size
    assert len({output.token_ids for output in outputs[0]}) > 1
    used = {
        name: tuple(b - a for a, b in zip(before.get(name, (0, 0)), after[name], strict=True))
        for name in after
    }
    layers, hidden, rows, vocabulary = 2, 48, 3, 258
    # Two sums per layer and one of the embedding; the rank's logits once; the plan, and the question after it.
    assert used["all_reduce"] == (2 * layers + 1, (2 * layers + 1) * rows * hidden * 4)
    assert used["all_gather"] == (1, rows * vocabulary // size * 4)
    assert used["broadcast"] == (2, plan_nbytes + group.plan_nbytes)
    assert engine.stats().num_steps == 0


@pytest.mark.parametrize("size", SIZES)
def test_a_rank_holds_its_share_and_5_percent_at_most(make_parallel, make_whole, size):
    """Would catch weights or KV heads that are not divided; the whole is the negative control."""
    parallel, whole = make_parallel(size), make_whole()
    reports, want = parallel.executor.memory(), whole.memory()
    assert len(reports) == size
    for report in reports:
        assert 0 < report.weights <= (1 / size + 0.05) * want.weights
        assert report.kv_cache == want.kv_cache / size
        assert not want.weights <= (1 / size + 0.05) * want.weights
    assert parallel.memory().kv_cache == want.kv_cache
    assert parallel.memory().bytes_per_token == want.bytes_per_token
    parallel.executor.check_health()


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_guesses_on_two_ranks_change_no_text(make_parallel, alike, divisible, method):
    """Would catch a rank that verifies other drafts than rank 0, and so writes other keys and values."""
    speculation = {"method": method, "num_speculative_tokens": 3}
    if method == "draft_model":
        speculation["model"] = str(
            divisible
        )  # its own draft model: whatever it drafts is accepted, but for ties
    engine = make_parallel(2, speculative_config=speculation)
    greedy, (want, _) = (0, 5), alike(divisible)
    for index in greedy:
        engine.add_request(str(index), {"prompt_token_ids": PROMPTS[index]}, PARAMS[index])
    got = {}
    while engine.has_unfinished_requests():
        got |= {int(output.request_id): output for output in engine.step()}
    assert [tokens(got[index]) for index in greedy] == [tokens(want[index]) for index in greedy]
    assert engine.stats().num_draft_tokens > 0
    assert method == "ngram" or engine.stats().num_accepted_tokens > 0
    first, second = engine.executor.memory()
    assert (first.draft_weights > 0) == (method == "draft_model") and second.draft_weights == 0


def test_every_rank_verifies_the_drafts_of_rank_zero():
    """Would catch two draft models that disagree, as they may after one rank has chosen another product."""

    class Drafts:
        def __init__(self, *tokens):
            self.tokens = tokens

        def fill_in(self, plan):
            rows = [replace(row, draft_token_ids=self.tokens[: row.num_drafts]) for row in plan.scheduled]
            return replace(plan, scheduled=tuple(rows))

    rows = [ScheduledSequence("a", 0, 3, (7,), (0,), num_drafts=2), ScheduledSequence("b", 1, 0, (7,), (1,))]
    plan = SchedulerOutput(0, tuple(rows))
    wrong = on_ranks(2, lambda tp: Drafts(5, 6 + tp.shard.rank).fill_in(plan))
    assert wrong[0] != wrong[1]  # the control: a drafter per rank
    filled = on_ranks(
        2, lambda tp: DraftsOfRankZero(Drafts(5, 6) if tp.shard.rank == 0 else None, tp).fill_in(plan)
    )
    assert filled[0] == filled[1] == Drafts(5, 6).fill_in(plan)
    assert on_ranks(
        2, lambda tp: DraftsOfRankZero(None, tp).fill_in(SchedulerOutput(0, (rows[1],))).scheduled
    )


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_any_history_on_two_ranks(make_parallel, make_whole, mode):
    """Would catch two features that are right alone on two ranks and wrong together. Drawn by hypothesis."""
    options = {"attention_backend": "torch", "skip_tokenizer_init": False, "num_blocks": 14}
    roomy, totals = make_whole(**options | {"num_blocks": 256}), {}

    @hypothesis.given(st.integers(0, 2**32))
    @hypothesis.settings(max_examples=2, derandomize=True, database=None)
    def histories(seed):
        r = random.Random(seed)
        engine = make_parallel(2, **random_options(r, mode) | options)
        for prompt, params, outputs in play(engine, r, num_requests=8):
            assert_same(everything(outputs, params), everything(alone(roomy, prompt, params), params))
        for name in ("num_preemptions", "num_copied_blocks"):
            totals[name] = totals.get(name, 0) + getattr(engine.stats(), name)

    histories()
    assert min(totals.values()) > 0


def biased_everywhere(self, linear, tp):
    torch.nn.Module.__init__(self)
    self.linear, self.tp = linear, tp


MUTANTS = {
    "bias on every rank": (parallel_layers.RowParallelLinear, "__init__", biased_everywhere),
    "no sum": (parallel_layers.RowParallelLinear, "forward", lambda self, x: self.linear(x)),
    "gather reshaped": (
        parallel_layers.ParallelLMHead,
        "forward",
        lambda self, x: torch.stack(self.tp._exchange(self.linear(x))).reshape(len(x), -1),
    ),
    "embedding of rank 0": (
        parallel_layers.VocabParallelEmbedding,
        "__call__",
        lambda self, ids: self.rows[ids % len(self.rows)],
    ),
}


@pytest.mark.parametrize("mutant", [None, *MUTANTS])
def test_known_bugs_change_what_is_sampled(make_whole, divisible, monkeypatch, mutant):
    """Negative control of the tests above: on ranks that are threads, so that a bug can be put in."""
    whole = make_whole(attention_backend="torch", enforce_eager=True)
    plan = decode_plan(1)
    want = numbers_of(whole.executor.execute_model(plan))
    if mutant is not None:
        monkeypatch.setattr(*MUTANTS[mutant])
    config = whole.executor.worker.config
    got = on_ranks(2, lambda tp: numbers_of(Worker(config, tp).execute_model(plan)))
    assert all(each == pytest.approx(want, abs=1e-4) for each in got) == (mutant is None)


def numbers_of(outputs):
    """The five likeliest tokens of each row and their log-probabilities."""
    entries = [output.logprobs[0][0] for output in outputs]
    return [number for entry in entries for pair in sorted(entry.top) for number in pair]

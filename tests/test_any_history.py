"""Any mixture of requests, under any pressure: each one gets what it gets alone in an empty engine.

Features are tested one by one elsewhere. Here they meet: n completions, beams, stop strings, log-probabilities,
penalties, seeds, the three kinds of output, too few blocks, small budgets, prefix hits, swaps, aborts, and steps
that fail half-way. The oracle is the same engine with room for everything and one request at a time.
"""

import random

import pytest

from minivllm import BeamSearchParams, RequestOutputKind, SamplingParams

DELTA = RequestOutputKind.DELTA
SPECIALS = [  # each with probability 1/3, on top of n, temperature, seed, max_tokens and output_kind
    lambda r: {
        "stop": r.choice([["a"], ["\x1f", "b"], "ab"]),
        "include_stop_str_in_output": r.random() < 0.5,
    },
    lambda r: {"stop_token_ids": r.sample(range(256), 20), "min_tokens": r.randrange(3)},
    lambda r: {"logprobs": r.choice([0, 1, 5])},
    lambda r: {"prompt_logprobs": r.choice([0, 1, 5])},
    lambda r: {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.3},
    lambda r: {"top_p": 0.8, "top_k": r.choice([0, 5, 100]), "min_p": r.choice([0.0, 0.1])},
    lambda r: {"bad_words": ["a", "be"], "allowed_token_ids": list(range(50, 120))},
    lambda r: {"logit_bias": {257: 5.0}, "ignore_eos": r.random() < 0.3},
]


def random_request(r, beams=True):
    """A prompt that may begin like others, and what is asked for it; a beam search among others, if wanted."""
    prompt = list(b"abcdeabcdeabcdeabcde"[: r.choice([1, 4, 5, 8, 9, 13, 20])]) + r.choices(range(256), k=2)
    if beams and r.random() < 0.2:
        return prompt, BeamSearchParams(r.choice([1, 2, 4]), r.choice([1, 5, 9]), ignore_eos=r.random() < 0.5)
    options = {"n": r.choice([1, 1, 2, 4]), "seed": r.randrange(99), "max_tokens": r.choice([3, 9, 16])}
    options["temperature"] = r.choice([0.0, 0.7]) if options["n"] == 1 else 1.5
    options["output_kind"] = r.choice(list(RequestOutputKind))
    for special in SPECIALS:
        if r.random() < 1 / 3:
            options |= special(r)
    return prompt, SamplingParams(**options)


def rounded(entries):
    """Log-probabilities without the float noise of another batch."""
    return [
        None if entry is None else {token: pytest.approx(x.logprob, abs=1e-2) for token, x in entry.items()}
        for entry in entries or []
    ]


def everything(outputs, params):
    """All that the outputs of one request say, deltas put together."""
    parts, prompt_entries = {}, []
    for output in outputs if getattr(params, "output_kind", None) is DELTA else outputs[-1:]:
        prompt_entries += output.prompt_logprobs or []
        for each in output.outputs:
            part = parts.setdefault(each.index, {"text": "", "token_ids": [], "logprobs": []})
            part["text"] += each.text
            part["token_ids"] += each.token_ids
            part["logprobs"] += each.logprobs or []
            part["end"] = (each.finish_reason, each.stop_reason)
    return parts, prompt_entries


def assert_same(got, want):
    """Equal texts, tokens, ends and log-probabilities."""
    (parts, prompt_entries), (want_parts, want_prompt_entries) = got, want
    assert logprobs_of(prompt_entries) == rounded(want_prompt_entries)
    assert parts.keys() == want_parts.keys()
    for index, part in parts.items():
        expected = want_parts[index]
        assert logprobs_of(part["logprobs"]) == rounded(expected["logprobs"])
        assert {key: part[key] for key in ("text", "token_ids", "end")} == {
            key: expected[key] for key in ("text", "token_ids", "end")
        }


def logprobs_of(entries):
    return [None if entry is None else {token: x.logprob for token, x in entry.items()} for entry in entries]


def fail_once(engine):
    """One step that dies after the model has written its KV."""
    original = engine.executor.execute_model

    def die(plan):
        original(plan)
        raise RuntimeError("boom")

    engine.executor.execute_model = die
    with pytest.raises(RuntimeError, match="boom"):
        engine.step()
    engine.executor.execute_model = original


def play(engine, r, num_requests=9, beams=True):
    """Let requests come, end, be aborted and be lost; returns those that finished, with their outputs."""
    requests, outputs, lost = {}, {}, set()
    while len(outputs) < num_requests or engine.has_unfinished_requests():
        while len(outputs) < num_requests and r.random() < 0.8:
            name, (prompt, params) = str(len(outputs)), random_request(r, beams)
            outputs[name] = []
            try:
                engine.add_request(name, {"prompt_token_ids": prompt}, params)
                requests[name] = prompt, params
            except ValueError as error:
                assert "blocks" in str(error) or "at once" in str(error)
        if r.random() < 0.03 and outputs and engine.abort_request(name := r.choice(list(outputs))):
            lost.add(name)
        if r.random() < 0.01 and engine.has_unfinished_requests():
            lost |= set(engine.scheduler.groups)
            fail_once(engine)
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.scheduler.kv.check_invariants()
    return [(*requests[name], outputs[name]) for name in requests if name not in lost]


def alone(engine, prompt, params):
    """The outputs of one request in an engine that has seen nothing before."""
    engine.reset_prefix_cache()
    engine.add_request("alone", {"prompt_token_ids": prompt}, params)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def random_options(r, mode):
    """Few seats, a small budget, few blocks: every one of them runs out some time."""
    seats = r.choice([4, 6, 16])
    return {
        "num_blocks": r.choice([14, 20, 26]),
        "enable_prefix_caching": r.random() < 0.7,
        "max_num_seqs": seats,
        "max_num_batched_tokens": seats + r.choice([0, 1, 5, 40]),
        "preemption_mode": mode,
        "swap_space_bytes": r.choice([1 << 13, 1 << 20]) if mode == "swap" else 0,
    }


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_every_request_gets_what_it_gets_alone(make_engine, mode):
    """Would catch any two features that are right alone and wrong together."""
    roomy, totals = make_engine(num_blocks=256, attention_backend="torch"), {}
    for seed in range(6):
        r = random.Random(f"{mode}/{seed}")
        engine = make_engine(**random_options(r, mode), attention_backend="torch")
        for prompt, params, outputs in play(engine, r):
            want = everything(alone(roomy, prompt, params), params)
            assert_same(everything(outputs, params), want)
        for name in ("num_preemptions", "num_copied_blocks", "prefix_cache_hits", "num_swapped_in_blocks"):
            totals[name] = totals.get(name, 0) + getattr(engine.stats(), name)
    assert totals["num_preemptions"] > 2
    assert totals["num_copied_blocks"] > 2
    assert totals["prefix_cache_hits"] > 2
    assert (totals["num_swapped_in_blocks"] > 0) == (mode == "swap")


@pytest.mark.parametrize("lost", ["copy_blocks", "swap_in"])
def test_lost_block_moves_would_be_noticed(make_engine, lost):
    """Negative control of the test above: without the copies, or without what was swapped out."""
    roomy, differences = make_engine(num_blocks=256, attention_backend="torch"), 0
    for seed in range(4):
        r = random.Random(f"swap/{seed}")
        engine = make_engine(**random_options(r, "swap"), attention_backend="torch")
        setattr(engine.runner.kv_cache, lost, lambda pairs: None)
        for prompt, params, outputs in play(engine, r):
            try:
                assert_same(everything(outputs, params), everything(alone(roomy, prompt, params), params))
            except AssertionError:
                differences += 1
    assert differences > 0

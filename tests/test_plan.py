"""The plan is data: it can leave the process, and a runner that has only the plan gives the same tokens."""

import dataclasses
import multiprocessing
import pickle

import pytest
import torch

from minivllm import BeamSearchParams, SamplingParams
from minivllm.config import EngineConfig
from minivllm.engine import LLMEngine
from minivllm.scheduler_output import ScheduledSequence, SchedulerOutput

OPTIONS = {
    "num_blocks": 18,
    "block_size": 4,
    "max_model_len": 128,
    "max_num_batched_tokens": 32,
    "max_num_seqs": 16,
}
PROMPTS = [list(range(40, 40 + length)) for length in (6, 1, 13, 9, 22)]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.8, seed=3, n=3, max_tokens=9, logprobs=2, ignore_eos=True),
    SamplingParams(repetition_penalty=1.3, frequency_penalty=0.5, bad_words=["ab"], seed=5, max_tokens=15),
    SamplingParams(temperature=0.9, seed=1, top_p=0.8, min_tokens=4, prompt_logprobs=1, max_tokens=10),
    BeamSearchParams(beam_width=3, max_tokens=6),
]


def run(engine):
    """All requests at once; token ids by request and completion, and the plans as they were pickled."""
    plans, results = [], {}
    original = engine.runner.execute_model

    def execute_model(plan):
        plans.append(pickle.dumps(plan))
        return original(pickle.loads(plans[-1]))

    engine.runner.execute_model = execute_model
    for index, (prompt, params) in enumerate(zip(PROMPTS, PARAMS, strict=True)):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            results[output.request_id] = [completion.token_ids for completion in output.outputs]
    return results, plans


def replay(model, plans, connection):
    """In another process: an engine's runner carries out plans; the scheduler is never asked."""
    torch.set_num_threads(1)
    engine = LLMEngine(EngineConfig(model=str(model), **OPTIONS))
    outputs = [engine.runner.execute_model(pickle.loads(plan)) for plan in plans]
    assert not engine.scheduler.groups
    connection.send([[output.token_ids or output.candidates for output in step] for step in outputs])
    connection.close()


def test_a_pickled_plan_gives_the_same_tokens_in_another_process(tiny_llama):
    """Would catch a row that needs an object of the scheduler: history, seed, parameters, what to score."""
    engine = LLMEngine(EngineConfig(model=str(tiny_llama), **OPTIONS))
    results, plans = run(engine)
    assert engine.stats().num_preemptions > 0 and engine.stats().num_copied_blocks > 0
    assert engine.scheduler.kv.pool.num_used == 0

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=replay, args=(tiny_llama, plans, sender))
    process.start()
    there = receiver.recv()
    process.join()
    assert process.exitcode == 0

    # Put together by request and sample, what the other process sampled is what the requests were given here.
    greedy_tokens = [
        run_[0]
        for plan, step in zip(map(pickle.loads, plans), there, strict=True)
        for row, output in zip(plan.scheduled, step, strict=True)
        if row.request_id == "0" and row.sampling is not None
        for run_ in output
    ]
    assert greedy_tokens == results["0"][0]
    num_sampled = sum(
        row.num_samples
        for plan in map(pickle.loads, plans)
        for row in plan.scheduled
        if row.sampling is not None
    )
    assert num_sampled == sum(len(tokens) for name in "0123" for tokens in results[name])
    for name in "23":
        seen = [
            output[0][0]
            for plan, step in zip(map(pickle.loads, plans), there, strict=True)
            for row, output in zip(plan.scheduled, step, strict=True)
            if row.request_id == name and row.sampling is not None
        ]
        assert seen == results[name][0]


def test_the_runner_wing_does_not_know_sequences():
    """Would catch an import through which a runner could reach the scheduler's state."""
    import subprocess
    import sys

    code = (
        "import sys, minivllm.model_runner, minivllm.sampler, minivllm.logits_processors\n"
        "above = {'sequence', 'scheduler', 'kv_cache_manager', 'parallel_sampling'}\n"
        "loaded = above & {name.removeprefix('minivllm.') for name in sys.modules}\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def plain(value):
    """Whether a value is made of numbers, strings, tuples, frozen sets and frozen dataclasses alone."""
    if dataclasses.is_dataclass(value):
        frozen = type(value).__dataclass_params__.frozen
        return frozen and all(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, tuple | frozenset):
        return all(map(plain, value))
    # What a user gave in SamplingParams may be a list or a dict; an Enum is a constant.
    return value is None or isinstance(value, int | float | str | list | dict) or hasattr(value, "value")


def test_a_plan_is_frozen_and_plain(tiny_llama):
    """Would catch a live object, or a list that the scheduler goes on changing, in a plan."""
    engine = LLMEngine(EngineConfig(model=str(tiny_llama), **OPTIONS))
    _, plans = run(engine)
    for plan in map(pickle.loads, plans):
        assert plain(plan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.step = 5
    assert not plain(SchedulerOutput(0, (ScheduledSequence("a", 0, 0, (1,), (object(),)),)))


def test_a_decode_plan_of_64_sequences_is_small(tiny_llama):
    """Would catch a history that every row carries: a message per step should not grow with the text."""
    engine = LLMEngine(EngineConfig(model=str(tiny_llama), num_blocks=2048, block_size=16))
    for index in range(64):
        params = SamplingParams(seed=index, top_p=0.9, max_tokens=16, ignore_eos=True)
        engine.add_request(str(index), {"prompt_token_ids": list(range(100)) * 2}, params)
    sizes = []
    original = engine.runner.execute_model

    def execute_model(plan):
        if plan.num_scheduled_tokens == 64:
            sizes.append(len(pickle.dumps(plan)))
        return original(plan)

    engine.runner.execute_model = execute_model
    while engine.has_unfinished_requests():
        engine.step()
    assert sizes and max(sizes) < 64 * 1024

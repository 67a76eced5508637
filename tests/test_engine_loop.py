"""One engine, several callers: threads that share it, and callers that are interrupted at any line."""

import gc
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

import minivllm
from minivllm import LLM, BeamSearchParams, SamplingParams
from tests.test_llm import assert_nothing_is_left

PACKAGE = str(Path(minivllm.__file__).parent)
# What runs between the interrupt's first and last line but keeps no state of a request: tensors.
TENSORS = {
    "llama.py",
    "layers.py",
    "layers_kernels.py",
    "attention_torch.py",
    "attention_kernels.py",
    "kernels.py",
    "attention.py",
}


@pytest.fixture(scope="module")
def make_llm(tiny_llama):
    def make(**options):
        defaults = {"num_blocks": 24, "block_size": 4, "max_model_len": 120, "max_num_batched_tokens": 40}
        return LLM(str(tiny_llama), **(defaults | {"max_num_seqs": 8} | options))

    return make


# -- threads ----------------------------------------------------------------------------------------


def test_threads_that_share_an_llm_get_their_own_texts(make_llm):
    """Would catch a step of one thread that takes, drops or mixes up the outputs of another."""
    llm = make_llm(num_blocks=200)
    prompts = [f"thread {number}, call {call}" for number in range(4) for call in range(12)]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    expected = dict(
        zip(
            prompts,
            [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)],
            strict=True,
        )
    )
    got, errors = {}, []

    def work(number):
        try:
            for call in range(12):
                prompt = f"thread {number}, call {call}"
                if call % 2:
                    (output,) = llm.generate([prompt], params, use_tqdm=False)
                    got[prompt] = output.outputs[0].token_ids
                else:
                    got[prompt] = [t for o in llm.stream(prompt, params) for t in o.outputs[0].token_ids]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    shared = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shared = max(shared, len(llm.llm_engine.scheduler.running))
        threads[0].join(0.001)
    assert not errors
    assert got == expected
    assert shared > 1, "the threads never shared a step, so nothing was tested"
    assert_nothing_is_left(llm)


def test_the_prefix_cache_is_reset_between_two_steps(make_llm, monkeypatch):
    """Would catch a reset in the middle of a step, which then registers its blocks again: the next prompt
    finds what its caller wanted to be forgotten.
    """
    llm = make_llm()
    step, log, started = llm.llm_engine.step, [], threading.Event()
    resetting = threading.Thread(target=lambda: (llm.reset_prefix_cache(), log.append("reset")))

    def slow_step():
        if not started.is_set():
            started.set()
            resetting.start()
            resetting.join(timeout=0.3)  # a reset which takes no turn is done by now
        outputs = step()
        log.append("step")
        return outputs

    monkeypatch.setattr(llm.llm_engine, "step", slow_step)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    llm.generate(["a prompt of several blocks"], params, use_tqdm=False)
    resetting.join(timeout=60)
    assert log.index("reset") > log.index("step")


def test_a_thread_that_waits_is_not_passed_by(make_llm):
    """Would catch a lock that the thread which steps takes again before the other one wakes up."""
    llm = make_llm(num_blocks=200)
    long, short = (SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (60, 2))
    order = []
    stream = llm.stream("a long one", long)
    next(stream)

    def call(name, outputs):
        list(outputs)
        order.append(name)

    threads = [
        threading.Thread(target=call, args=("long", stream)),
        threading.Thread(target=call, args=("short", llm.stream("a short one", short))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["short", "long"]
    assert_nothing_is_left(llm)


def test_a_failed_step_tells_every_caller(make_llm, monkeypatch):
    """Would catch a thread that waits for ever for outputs of requests which an error has dropped."""
    llm = make_llm()
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    first, second = llm.stream("abc", params), llm.stream("def", params)
    next(first), next(second)

    def explode(plan):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(llm.llm_engine.runner, "execute_model", explode)
    with pytest.raises(ZeroDivisionError):
        list(first)
    with pytest.raises(RuntimeError, match="no longer in the engine"):
        list(second)
    assert_nothing_is_left(llm)


def test_a_stream_closed_in_the_middle_of_a_step_leaves_at_the_next_turn(make_llm, monkeypatch):
    """Would catch an abort between `schedule` and `update_from_output`, and a thread that waits for itself."""
    llm = make_llm()
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    streams = [llm.stream("abandoned", params)]
    next(streams[0])
    original = llm.llm_engine.runner.execute_model

    def close_and_execute(plan):
        if streams:
            streams.pop().close()
            gc.collect()
        return original(plan)

    monkeypatch.setattr(llm.llm_engine.runner, "execute_model", close_and_execute)
    (output,) = llm.generate("another", params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 20
    assert_nothing_is_left(llm)


# -- interrupts -------------------------------------------------------------------------------------

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


def leave(stream):
    """Read one output and go. (Closed by name: what a destructor raises, Python only prints.)"""
    with closing(stream):
        next(stream)


CALLS = {
    "generate": lambda llm: llm.generate(
        ["one prompt", "another", "a third one"],
        SamplingParams(n=2, max_tokens=5, seed=1, stop="zz", ignore_eos=True),
        use_tqdm=False,
    ),
    "stream": lambda llm: list(llm.stream(["one prompt", "two"], GREEDY)),
    "left stream": lambda llm: leave(llm.stream(["one prompt", "two"], GREEDY)),
    "chat": lambda llm: llm.chat([{"role": "user", "content": "hello"}], GREEDY, use_tqdm=False),
    "beam_search": lambda llm: llm.beam_search(
        ["abc", "defgh"], BeamSearchParams(beam_width=2, max_tokens=3)
    ),
}


class InterruptAt:
    """Raises KeyboardInterrupt when a line of minivllm is about to run for the n-th time; None: only counts."""

    def __init__(self, line=None, occurrence=1):
        self.line, self.occurrence = line, occurrence
        self.counts = {}

    def trace(self, frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) or Path(name).name in TENSORS:
            return None
        if self.line is not None and name != self.line[0]:
            return None  # another file's lines need not be counted: tracing is slow
        if event == "line":
            line = name, frame.f_lineno
            self.counts[line] = self.counts.get(line, 0) + 1
            if line == self.line and self.counts[line] == self.occurrence:
                self.line = None  # once: a user's second Ctrl-C is another story
                raise KeyboardInterrupt
        return self.trace

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)


def assert_interrupts_leave_nothing(llm, call, places):
    """Interrupt `call` at each (line, occurrence)."""
    for line, occurrence in places:
        interrupted = None
        try:
            with InterruptAt(line, occurrence) as at:
                call(llm)
        except KeyboardInterrupt as error:
            interrupted = error
            assert_nothing_is_left(llm)  # while the traceback is still alive
        where = f"{Path(line[0]).name}:{line[1]}, time {occurrence}"
        assert interrupted is not None or at.line is not None, f"an interrupt was swallowed at {where}"
        assert_nothing_is_left(llm)


def test_an_interrupt_at_any_line_leaves_nothing_behind(make_llm):
    """Would catch requests, blocks, texts and mailboxes that stay, and an error in place of the user's own.

    Each line that a call runs is hit, the first time that it comes; those of the loop and the engine the last time,
    too. (What the tensors do in between is a step like any other: it is left out.)
    """
    tried = set()
    swap = {"preemption_mode": "swap", "swap_space_bytes": 1 << 20}
    for options, calls in (({}, CALLS), (swap, ["generate"])):
        llm = make_llm(num_blocks=9, **options)
        llm.get_tokenizer().chat_template = (
            "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        )
        for name in calls:
            with InterruptAt() as seen:
                CALLS[name](llm)
            assert_nothing_is_left(llm)
            places = [(line, 1) for line in seen.counts]
            places += [(line, n) for line, n in seen.counts.items() if "engine" in Path(line[0]).name]
            # A line of the scheduler is the same line whichever call runs it; the loop's are tried for each call.
            places = [place for place in places if place not in tried or "engine_loop" in place[0][0]]
            assert_interrupts_leave_nothing(llm, CALLS[name], places)
            tried.update(places)
        assert llm.llm_engine.stats().num_preemptions > 0
    assert llm.llm_engine.stats().num_swapped_in_blocks > 0 and len(tried) > 500

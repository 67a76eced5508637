"""`AsyncLLM`: one thread steps, coroutines read; every request ends, and every block comes back."""

import asyncio
import gc
import threading
import time
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm import LLM, EngineConfig, LLMEngine, RequestOutputKind, SamplingParams
from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.server.async_llm import AsyncLLM, EngineClosedError, RequestAbortedError
from minivllm.server.output_stream import OutputStream, merge_deltas

OPTIONS = {
    "num_blocks": 64,
    "block_size": 4,
    "max_model_len": 200,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
DELTA = replace(GREEDY, output_kind=RequestOutputKind.DELTA)
FINAL = replace(GREEDY, output_kind=RequestOutputKind.FINAL_ONLY)
LONG = replace(DELTA, max_tokens=150)


@pytest.fixture
def make_async(tiny_llama):
    """Make async engines; when the test is over each must be empty, with all its blocks back."""
    made = []

    def make(**options):
        config = EngineConfig(model=str(tiny_llama), **OPTIONS | options)
        made.append(AsyncLLM(lambda: LLMEngine(config)))
        return made[-1]

    yield make
    for engine in made:
        engine.shutdown()
        assert not engine._thread.is_alive()
        scheduler = engine.engine.scheduler
        scheduler.kv.check_invariants()
        assert not scheduler.groups and scheduler.kv.pool.num_used == 0
        assert not (engine._streams or engine._running or engine._outbox or engine.engine_loop._mailboxes)
        assert not engine.engine.output_processor._requests


@pytest.fixture(scope="module")
def offline(tiny_llama):
    """Texts of the offline engine, by prompt and parameters."""
    llm = LLM(str(tiny_llama), **OPTIONS)

    def text(prompt, params=GREEDY):
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        return [(each.text, each.token_ids, each.finish_reason) for each in output.outputs]

    return text


async def read(engine, prompt, params, name):
    """All outputs of a request."""
    return [output async for output in engine.generate(prompt, params, name)]


def joined(outputs):
    """The deltas of a request, put together."""
    whole = outputs[0]
    for output in outputs[1:]:
        whole = merge_deltas(whole, output)
    return [(each.text, each.token_ids, each.finish_reason) for each in whole.outputs]


async def num_used(engine):
    return await engine.call(lambda inner: inner.scheduler.kv.pool.num_used)


async def until(condition):
    """Wait until `await condition()`; the test fails after a minute."""
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.001)


# -- its thread -------------------------------------------------------------------------------------


def test_one_thread_makes_the_engine_and_runs_every_step(tiny_llama):
    """Would catch an engine made elsewhere: it leaves OpenMP helpers behind, and every step is slower."""
    threads = []

    class Watch:
        def record(self, *step):
            threads.append(threading.current_thread())

    def make():
        threads.append(threading.current_thread())
        return LLMEngine(EngineConfig(model=str(tiny_llama), **OPTIONS), trace=Watch())

    engine = AsyncLLM(make)
    asyncio.run(read(engine, "some words", GREEDY, "a"))
    engine.shutdown()
    assert len(threads) > GREEDY.max_tokens and set(threads) == {engine._thread}
    assert threading.current_thread() not in threads


def test_an_engine_that_cannot_be_made_is_told_to_the_caller(tiny_llama):
    """Would catch a constructor that waits for ever for a thread which has died, or hides why it died."""
    before = threading.active_count()
    with pytest.raises(ValueError, match="num_blocks"):
        AsyncLLM(lambda: LLMEngine(EngineConfig(model=str(tiny_llama), **OPTIONS | {"num_blocks": 0})))
    assert threading.active_count() == before


# -- the same texts ---------------------------------------------------------------------------------


def test_coroutines_get_the_offline_texts_and_share_steps(make_async, offline):
    """Would catch outputs that reach another stream, are lost, or come twice; and requests served one by one."""
    engine, most = make_async(), []

    async def main():
        async def watch():
            while True:
                most.append(await engine.call(lambda inner: len(inner.scheduler.running)))
                await asyncio.sleep(0)

        watcher = asyncio.create_task(watch())
        kinds = [DELTA, GREEDY, FINAL]
        reads = [read(engine, f"prompt number {i}", kinds[i % 3], str(i)) for i in range(9)]
        results = await asyncio.gather(*reads)
        watcher.cancel()
        return results

    for i, outputs in enumerate(asyncio.run(main())):
        got = joined(outputs) if i % 3 == 0 else joined(outputs[-1:])
        assert got == offline(f"prompt number {i}")
        assert len(outputs) == 1 if i % 3 == 2 else len(outputs) > 1
    assert max(most) > 1, "no step was shared"


def test_a_starved_pool_preempts_and_the_texts_stay_the_same(make_async, offline):
    """Would catch a preempted request whose stream ends early or repeats what it has shown."""
    engine = make_async(num_blocks=20, max_model_len=80)
    params = replace(DELTA, max_tokens=40)

    async def main():
        results = await asyncio.gather(*(read(engine, f"starved {i}", params, str(i)) for i in range(6)))
        return results, await engine.call(lambda inner: inner.stats().num_preemptions)

    results, num_preemptions = asyncio.run(main())
    assert num_preemptions > 0
    for i, outputs in enumerate(results):
        assert joined(outputs) == offline(f"starved {i}", replace(GREEDY, max_tokens=40))


def test_requests_of_one_call_come_through_one_stream(make_async, offline):
    """Would catch a stream that ends with the first of its requests, or mixes up two."""
    engine = make_async()

    async def main():
        from minivllm.inputs import Request

        makers = {name: (lambda inner, name=name: Request(f"many {name}", DELTA)) for name in "abc"}
        with await engine.submit(makers, DELTA.output_kind) as stream:
            return [output async for output in stream]

    outputs = asyncio.run(main())
    for name in "abc":
        assert joined([o for o in outputs if o.request_id == name]) == offline(f"many {name}")


# -- wrong requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["", "x" * 500, [1, 2, 99_999], 7])
def test_a_wrong_request_is_refused_and_leaves_nothing(make_async, prompt):
    """Would catch an error in the engine's thread that kills it, or that the caller never hears of."""
    engine = make_async()

    async def main():
        with pytest.raises((ValueError, TypeError)):
            await read(engine, prompt, DELTA, "wrong")
        assert engine.num_unfinished == 0 and not engine.errored
        return joined(await read(engine, "right", DELTA, "wrong"))

    assert asyncio.run(main())[0][2] == "length"


def test_all_requests_of_a_call_are_refused_if_one_is_wrong(make_async):
    """Would catch the first of two prompts running on after the second was refused."""
    from minivllm.inputs import Request

    engine = make_async()

    async def main():
        makers = {"good": lambda inner: Request("good", DELTA), "bad": lambda inner: Request("", DELTA)}
        with pytest.raises(ValueError, match="cannot be empty"):
            await engine.submit(makers, DELTA.output_kind)
        assert await engine.call(lambda inner: inner.scheduler.stats.num_steps) == 0

    asyncio.run(main())


def test_a_name_in_use_is_refused(make_async):
    """Would catch a second request that takes over the first one's stream."""
    engine = make_async()

    async def main():
        async with aclosing(engine.generate("one", LONG, "same")) as first:
            await anext(first)
            with pytest.raises(ValueError, match="in use"):
                await read(engine, "two", DELTA, "same")
            assert engine.num_unfinished == 1

    asyncio.run(main())


# -- readers that leave -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["break", "cancel", "forget", "abort"])
def test_a_reader_that_leaves_gives_its_blocks_back_before_the_next_step_but_one(
    make_async, monkeypatch, way
):
    """Would catch a client that leaves and keeps its blocks until its text is complete."""
    engine = make_async()
    original = engine.engine.runner.execute_model
    # Slow steps, so that a busy machine has not made all of them before it hears of the reader.
    monkeypatch.setattr(
        engine.engine.runner, "execute_model", lambda plan: time.sleep(0.03) or original(plan)
    )

    async def main():
        async def consume():
            async for _ in engine.generate("leaves early", LONG, "leaver"):
                if way == "break":
                    break
                started.set()

        started = asyncio.Event()
        if way == "forget":
            outputs = engine.generate("leaves early", LONG, "leaver")
            await anext(outputs)
            del outputs
            gc.collect()
            await asyncio.sleep(0)  # asyncio closes forgotten generators in a task of its own
        elif way == "break":
            await consume()
            gc.collect()
            await asyncio.sleep(0)
        else:
            task = asyncio.create_task(consume())
            await started.wait()
            if way == "abort":
                await engine.abort("leaver")
                with pytest.raises(RequestAbortedError, match="leaver"):
                    await task
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        await until(lambda: none_in_use(engine))
        steps = await engine.call(lambda inner: inner.scheduler.stats.num_steps)
        assert 0 < steps < 100, "the text was completed: no reader had left"

    async def none_in_use(engine):
        return await num_used(engine) == 0

    asyncio.run(main())


def test_an_abort_is_done_before_the_next_step(make_async):
    """Would catch aborts that wait behind steps: with the engine paused, the blocks are free at the next job."""
    engine = make_async()

    async def main():
        await engine.pause()
        outputs = engine.generate("abc", LONG, "a")
        first = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0)
        assert await engine.step()
        await first
        assert await num_used(engine) > 0
        await outputs.aclose()
        assert await num_used(engine) == 0
        await engine.resume()

    asyncio.run(main())


def test_a_submission_that_is_cancelled_is_not_left_behind(make_async):
    """Would catch a request that is queued after its client was cancelled: its text would never be read."""
    engine = make_async()

    async def main():
        from minivllm.inputs import Request

        release = threading.Event()
        block = asyncio.create_task(engine.call(lambda inner: release.wait(10)))  # the thread is busy
        await asyncio.sleep(0.01)
        task = asyncio.create_task(engine.submit({"x": lambda inner: Request("x", LONG)}, LONG.output_kind))
        await asyncio.sleep(0.01)
        task.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await block
        assert engine.num_unfinished == 0
        assert not await engine.call(lambda inner: list(inner.scheduler.groups))

    asyncio.run(main())


# -- slow readers -----------------------------------------------------------------------------------


def test_a_slow_reader_holds_one_output_and_loses_nothing(make_async, offline):
    """Would catch a queue that grows while a reader sleeps, and merged deltas with a piece missing."""
    engine = make_async()

    async def main():
        outputs = []
        from minivllm.inputs import Request

        with await engine.submit({"slow": lambda inner: Request("slow", LONG)}, LONG.output_kind) as stream:
            outputs.append(await anext(stream))
            while stream.unfinished:  # the engine finishes before the reader looks again
                assert stream.num_pending <= 1
                await asyncio.sleep(0.001)
            outputs += [output async for output in stream]
        return outputs

    outputs = asyncio.run(main())
    assert len(outputs) == 2, "nothing was merged"
    assert joined(outputs) == offline("slow", replace(GREEDY, max_tokens=LONG.max_tokens))


def completion(index, text, **options):
    return CompletionOutput(index, text, [ord(char) for char in text], **options)


@given(st.lists(st.tuples(st.integers(0, 2), st.text("ab é", max_size=3)), min_size=1), st.data())
def test_merged_deltas_say_what_the_deltas_said(pieces, data):
    """Would catch a merge that drops, repeats or reorders text, wherever the reader happens to look."""

    async def main():
        stream, seen = OutputStream(["r"], True, lambda names: None), {0: "", 1: "", 2: ""}
        for number, (index, text) in enumerate(pieces):
            last = number == len(pieces) - 1
            stream.put(RequestOutput("r", None, [], None, [completion(index, text)], finished=last))
            if last or data.draw(st.booleans()):
                for each in (await anext(stream)).outputs:
                    assert each.token_ids == [ord(char) for char in each.text]
                    seen[each.index] += each.text
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert seen == {i: "".join(text for index, text in pieces if index == i) for i in range(3)}

    asyncio.run(main())


def test_merging_keeps_the_end_of_a_sibling_that_has_finished():
    """Would catch a finish reason that is lost when two deltas of n = 2 become one."""
    before = RequestOutput("r", None, [], None, [completion(0, "a", finish_reason="stop")], finished=False)
    after = RequestOutput("r", None, [], None, [completion(1, "b", finish_reason="length")], finished=True)
    reasons = [each.finish_reason for each in merge_deltas(before, after).outputs]
    assert reasons == ["stop", "length"]


# -- errors in a step -------------------------------------------------------------------------------


def test_a_failed_step_ends_every_stream_and_the_engine_goes_on(make_async, monkeypatch, offline):
    """Would catch readers that wait for ever after an error, and a thread that dies of it."""
    engine = make_async()
    runner, original = engine.engine.runner, engine.engine.runner.execute_model

    def explode(plan):
        if len(plan.scheduled) == 3 and plan.step > 5:
            raise ZeroDivisionError("boom")
        return original(plan)

    monkeypatch.setattr(runner, "execute_model", explode)

    async def main():
        reads = (read(engine, f"fails {i}", LONG, str(i)) for i in range(3))
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 3
        assert await num_used(engine) == 0 and not engine.errored and engine.is_running
        return joined(await read(engine, "afterwards", DELTA, "0"))

    assert asyncio.run(main()) == offline("afterwards")


def test_a_thread_that_dies_tells_every_reader_and_refuses_the_next(make_async, monkeypatch):
    """Would catch a server that hangs, and calls itself healthy, when its engine is gone."""
    engine = make_async()

    def exit_thread(plan):
        raise SystemExit("gone")

    monkeypatch.setattr(engine.engine.runner, "execute_model", exit_thread)

    async def main():
        with pytest.raises(SystemExit):
            await read(engine, "abc", DELTA, "a")
        engine._thread.join()
        assert engine.errored and not engine.is_running
        with pytest.raises(EngineClosedError):
            await read(engine, "abc", DELTA, "b")

    asyncio.run(main())


def test_shutdown_ends_readers_with_an_error(make_async):
    """Would catch a stream that waits for ever for an engine that was shut down."""
    engine = make_async()

    async def main():
        async def consume():
            async for _ in engine.generate("abc", LONG, "a"):
                started.set()

        started = asyncio.Event()
        task = asyncio.create_task(consume())
        await started.wait()
        engine.shutdown()
        with pytest.raises(EngineClosedError):
            await task
        with pytest.raises(EngineClosedError):
            await engine.call(lambda inner: None)

    asyncio.run(main())


# -- pause and step ---------------------------------------------------------------------------------


def test_pause_holds_the_engine_and_step_runs_exactly_one(make_async, offline):
    """Would catch a paused engine that steps, a step that is two, and a pause that loses requests."""
    engine = make_async()

    async def steps():
        return await engine.call(lambda inner: inner.scheduler.stats.num_steps)

    async def main():
        with pytest.raises(ValueError, match="pause it"):
            await engine.step()
        await engine.pause()
        tasks = [asyncio.create_task(read(engine, f"walk {i}", DELTA, str(i))) for i in range(3)]
        await asyncio.sleep(0.05)
        assert await steps() == 0 and await engine.is_paused()
        assert await engine.call(lambda inner: len(inner.scheduler.waiting)) == 3
        for number in range(1, 4):
            assert await engine.step()
            await asyncio.sleep(0.01)
            assert await steps() == number
        await engine.resume()
        results = await asyncio.gather(*tasks)
        await engine.pause()
        assert not await engine.step(), "a step with nothing to do"
        return results

    for i, outputs in enumerate(asyncio.run(main())):
        assert joined(outputs) == offline(f"walk {i}")

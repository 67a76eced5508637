"""Workers that die, fail or never start: the call raises and says why, and no process stays behind."""

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minivllm import LLM, SamplingParams
from minivllm.config import EngineConfig
from minivllm.distributed.communication import TensorParallel
from minivllm.distributed.multiproc import MultiprocExecutor, WorkerError, WorkerGroup
from minivllm.distributed.sharding import Shard
from minivllm.distributed.worker_process import Call, Place, run_worker
from minivllm.engine import LLMEngine
from minivllm.scheduler_output import SchedulerOutput
from tests.distributed.conftest import OPTIONS

ROOT = Path(__file__).parents[2]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
PROMPT = {"prompt_token_ids": [65, 66, 67]}


def children_are_gone(group):
    return all(process.exitcode is not None for process in group._processes) and not [
        child for child in multiprocessing.active_children() if child.name.startswith("minivllm rank")
    ]


def port_is_free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def gloo_has_threads():
    """Whether this process has a thread that gloo has started; Linux keeps each thread's name in a file."""
    names = []
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):  # the thread has ended since its name was listed
            names.append(Path(f"/proc/self/task/{task}/comm").read_text())
    return any("gloo" in name for name in names)


def eventually(condition):
    """Whether `condition()` holds within ten seconds: a thread takes its name, and leaves the list, a bit late."""
    deadline = time.monotonic() + 10
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds


class KillsRankOne:
    """A sampler that ends its own process in its second step, when the ranks are in the middle of a step."""

    def __init__(self):
        self.steps = 0

    def __call__(self, logits, rows):
        from minivllm.sampler import Sampler

        self.steps += 1
        if self.steps == 2 and multiprocessing.current_process().name == "minivllm rank 1":
            os.kill(os.getpid(), signal.SIGKILL)
        return Sampler()(logits, rows)


def test_a_killed_worker_is_named_and_takes_the_others_along(divisible):
    """Would catch a step that waits for ever for a sum, an orphan, a port that stays taken, lost blocks."""
    config = EngineConfig(model=str(divisible), tensor_parallel_size=2, **OPTIONS)
    engine = LLMEngine(config, sampler=KillsRankOne())
    group = engine.executor.group
    port = group._store.port
    assert not port_is_free(port), "negative control: the ranks meet here"
    engine.add_request("a", PROMPT, GREEDY)
    engine.step()
    start = time.monotonic()
    with pytest.raises(
        WorkerError, match=r"rank 1 \(process \d+\) was killed by SIGKILL. \(called: execute_model\)"
    ):
        for _ in range(8):
            engine.step()
    assert time.monotonic() - start < 5
    assert children_are_gone(group)
    assert not engine.has_unfinished_requests() and engine.scheduler.kv.pool.num_used == 0
    engine.add_request("b", PROMPT, GREEDY)
    for call in (engine.step, engine.executor.check_health):
        with pytest.raises(WorkerError, match="was killed by SIGKILL"):  # the first cause, again
            call()
    del group
    engine.executor.group._store = None
    assert port_is_free(port)


def test_two_engines_run_side_by_side_and_a_new_one_works_after_a_fault(divisible):
    """Would catch a fixed port or shared name; a traceback that stays in the worker; a group that hangs on."""
    options = OPTIONS | {"distributed_executor_backend": "mp"}
    first = LLM(divisible, tensor_parallel_size=2, **options)
    second = LLM(divisible, **options)  # one worker, in its own process
    outputs = [
        llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids for llm in (first, second)
    ]
    assert outputs[0] == outputs[1]

    impossible = SchedulerOutput(1, (), blocks_to_copy=((10_000, 1),))
    group = first.llm_engine.executor.group
    with pytest.raises(WorkerError, match=r"rank [01] failed:") as caught:
        first.llm_engine.executor.execute_model(impossible)
    assert "called: execute_model" in str(caught.value)
    assert "kv_cache.py" in str(caught.value) and "ValueError: source block ids [10000]" in str(caught.value)
    assert all(process.exitcode is not None for process in group._processes)
    # The other engine has not noticed.
    second.llm_engine.executor.check_health()
    assert second.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == outputs[1]
    group = second.llm_engine.executor.group
    second.llm_engine.shutdown()
    second.llm_engine.shutdown()  # may be called again
    assert children_are_gone(group)
    with pytest.raises(WorkerError, match="were shut down"):
        second.llm_engine.executor.check_health()


def test_a_model_that_cannot_be_divided_starts_no_process(divisible, monkeypatch):
    """Would catch processes that are started to find out what the config says."""
    monkeypatch.setattr(WorkerGroup, "__init__", lambda *args: pytest.fail("processes were started"))
    with pytest.raises(
        ValueError, match=r"tensor_parallel_size=4 does not divide .* Sizes which do: 1, 2, 3, 6"
    ):
        LLM(divisible, tensor_parallel_size=4, **OPTIONS)
    with pytest.raises(ValueError, match="attention_backend must be a name"):
        LLM(divisible, tensor_parallel_size=2, attention_backend=FakeBackend(), **OPTIONS)
    for options, text in (
        ({"distributed_executor_backend": "uni"}, "leave the backend out"),
        ({"nnodes": 3}, "must be a multiple of nnodes"),
        ({"nnodes": 2, "node_rank": 2}, "below nnodes"),
        ({"nnodes": 2}, "give master_port"),
    ):
        with pytest.raises(ValueError, match=text):
            LLM(divisible, tensor_parallel_size=2, **OPTIONS, **options)


class FakeBackend:
    name = "fake"

    def prepare(self, metadata): ...

    def forward(self, *args): ...


def test_a_rank_that_cannot_start_says_why(divisible, tmp_path):
    """Would catch a start that hangs in the rendezvous because one rank never came."""
    start = time.monotonic()
    no_memory = {name: value for name, value in OPTIONS.items() if name != "num_blocks"}
    with pytest.raises(WorkerError, match=r"rank [01] failed:") as caught:
        LLM(divisible, tensor_parallel_size=2, kv_cache_memory_bytes=10, **no_memory)
    assert "No memory for the KV cache: 10 bytes" in str(caught.value)
    assert time.monotonic() - start < 120  # of which most is starting two processes
    with pytest.raises(ValueError, match=r"has no config\.json"):
        LLM(tmp_path, tensor_parallel_size=2, **OPTIONS)


def test_a_server_whose_worker_is_gone_takes_no_more_requests(divisible):
    """Would catch a server that says it is healthy and answers every request with the same error."""
    from minivllm.server.async_llm import AsyncLLM

    config = EngineConfig(model=str(divisible), distributed_executor_backend="mp", **OPTIONS)

    async def serve():
        engine = AsyncLLM(lambda: LLMEngine(config))
        (process,) = engine.engine.executor.group._processes
        outputs = [output async for output in engine.generate(PROMPT, GREEDY, "a")]
        assert outputs[-1].finished and engine.is_running
        process.kill()
        with pytest.raises(WorkerError, match="was killed by SIGKILL"):
            async for _ in engine.generate(PROMPT, GREEDY, "b"):
                pass
        engine._thread.join(30)
        assert not engine.is_running and engine.errored

    asyncio.run(serve())


def test_a_rank_that_is_told_to_stop_leaves_no_thread_of_its_connections(monkeypatch):
    """Would catch a worker which ends with SIGABRT after its work is done, because such threads were left."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = Place(Shard(), "127.0.0.1", store.port, torch.get_num_threads())
    during = []

    def broadcast(_, message):
        during.append(eventually(gloo_has_threads))
        return message

    monkeypatch.setattr(TensorParallel, "broadcast", broadcast)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process goes on and needs its own
    ours, theirs = multiprocessing.Pipe()
    ours.send_bytes(pickle.dumps(Call(1, "stop")))
    run_worker(place, theirs)
    assert during == [True], "gloo had no thread, so that it has none now says nothing"
    assert eventually(lambda: not gloo_has_threads()) and not dist.is_initialized()


def test_a_rank_that_never_comes_is_named(monkeypatch):
    """Would catch a start that waits for ever, because a machine was forgotten."""
    from datetime import timedelta

    from minivllm.distributed import communication

    monkeypatch.setattr(communication, "START_LIMIT", timedelta(seconds=0.5))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(
        RuntimeError, match=r"rank 0, rank 2 of 3 did not come to 127\.0\.0\.1:\d+ within 0:00:00"
    ):
        communication.join(Shard(1, 3), "127.0.0.1", store.port)


SCRIPT = """
import sys
from minivllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], tensor_parallel_size=2, num_blocks=64, block_size=4, max_model_len=250,
              skip_tokenizer_init=True)
    pids = [process.pid for process in llm.llm_engine.executor.group._processes]
    prompts = [{"prompt_token_ids": [i]} for i in range(200)]
    for number, output in enumerate(llm.stream(prompts, SamplingParams(max_tokens=200, ignore_eos=True))):
        if number == 3:
            print(*pids, flush=True)
"""


def is_running(pid):
    """Whether there is such a process that is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_end_of_the_engines_process_leaves_no_orphan(divisible, tmp_path, how):
    """Would catch workers that outlive Ctrl-C (sent to all, as a terminal does), or a kill of the engine."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, divisible], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2 and all(map(is_running, pids))
    if how is signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (how is signal.SIGINT)
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_reply_that_an_interrupt_left_unread_is_not_taken_for_the_next(divisible, monkeypatch):
    """Would catch the outputs of an interrupted step given to the requests of the step after it."""
    from minivllm.distributed import multiproc

    config = EngineConfig(model=str(divisible), distributed_executor_backend="mp", **OPTIONS)
    engine = LLMEngine(config)
    assert isinstance(engine.executor, MultiprocExecutor)
    engine.add_request("a", PROMPT, GREEDY)

    def interrupted(connections):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(multiproc, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert not engine.has_unfinished_requests() and engine.scheduler.kv.pool.num_used == 0
    whole = LLM(divisible, **OPTIONS).generate([[70, 71], [72]], GREEDY, use_tqdm=False)
    for index, ids in enumerate([[70, 71], [72]]):
        engine.add_request(str(index), {"prompt_token_ids": ids}, GREEDY)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output.outputs[0].token_ids for output in engine.step()}
    assert [outputs["0"], outputs["1"]] == [output.outputs[0].token_ids for output in whole]
    # An engine that is dropped without a shutdown leaves no process either.
    (process,) = engine.executor.group._processes
    assert process.is_alive()
    del engine
    gc.collect()
    assert process.exitcode is not None

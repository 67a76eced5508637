"""A real server on a free port, in a thread: what the clients of these tests talk to."""

import asyncio
import threading
import time
from contextlib import contextmanager

import openai
import pytest

from minivllm import LLM
from minivllm.cli import make_parser
from minivllm.outputs import SequenceOutput, TokenLogprobs

ENGINE = ["--num-blocks", "64", "--block-size", "4", "--max-model-len", "200", "--max-num-seqs", "8",
          "--max-num-batched-tokens", "64"]  # fmt: skip


class Running:
    """A server that runs in a thread, and what a test wants to know of it."""

    def __init__(self, server):
        self.server = server
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        self.engine = server.engine

    def client(self, **options):
        options = {"api_key": "none", "max_retries": 0, "timeout": 30} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def ask(self, function):
        """`function(engine)` in the engine's thread, from this one."""
        loop = self.server.loop
        return asyncio.run_coroutine_threadsafe(self.engine.call(function), loop).result(60)

    def wait(self, condition, seconds=60):
        """Until `condition(engine)` holds; the test fails if it does not."""
        end = time.monotonic() + seconds
        while not self.ask(condition):
            assert time.monotonic() < end, "it did not come to pass"
            time.sleep(0.002)

    def is_empty(self):
        return self.ask(is_empty)


def is_empty(engine):
    """No request, and every block in the pool."""
    engine.scheduler.kv.check_invariants()
    return not engine.scheduler.groups and engine.scheduler.kv.pool.num_used == 0


@contextmanager
def running(model, *options):
    """A server; at the end it must be empty and must stop."""
    from minivllm.server.launch import Server

    line = ["serve", str(model), "--port", "0", "--served-model-name", "tiny", "--uvicorn-log-level", "error"]
    args = make_parser().parse_args([*line, *ENGINE, *options])
    args.model = args.model_tag
    server = Server(args)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    here = Running(server)
    asyncio.run_coroutine_threadsafe(server.engine.call(lambda engine: None), server.loop).result(60)
    try:
        yield here
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not stop"
        server.engine.shutdown()  # a server that was made to stop at once has not done it
    assert is_empty(server.engine.engine)
    assert not (server.engine._streams or server.engine.engine_loop._mailboxes)


@pytest.fixture(scope="session")
def shared(tiny_llama):
    """One server for all tests that leave it as it was."""
    with running(tiny_llama) as server:
        yield server


@pytest.fixture
def server(shared):
    """The shared server, empty before and after each test."""
    shared.wait(is_empty)
    yield shared
    shared.wait(is_empty)
    assert not shared.engine.errored


@pytest.fixture
def start(tiny_llama):
    """Start a server with options of its own, as a context manager."""
    return lambda *options: running(tiny_llama, *options)


@pytest.fixture(scope="session")
def llm(tiny_llama):
    """The offline engine: its texts are what the server's must be."""
    return LLM(str(tiny_llama), num_blocks=64, block_size=4, max_model_len=200)


@pytest.fixture
def script(server, monkeypatch):
    """`script("text")`: whatever runs, the model says the bytes of this text, one per step, and then "x"s.

    The likeliest tokens are, at each step, the one that is said, and bytes FD and FE, which no text has.
    """

    def say(text, seconds=0.0):
        said, runner = text.encode(), server.engine.engine.runner

        def execute(plan):
            time.sleep(seconds)
            outputs = []
            for row in plan.scheduled:
                number = row.sampling.num_output_tokens if row.sampling else 0
                token = said[number] if number < len(said) else ord("x")
                entry = TokenLogprobs(token, -0.5, 1, ((token, -0.5), (0xFD, -1.5), (0xFE, -2.5)))
                outputs.append(SequenceOutput(((token,),) * row.num_samples, ((entry,),) * row.num_samples))
            return outputs

        monkeypatch.setattr(runner, "execute_model", execute)

    yield say
    # Nothing was computed, so the blocks do not hold what the prefix cache believes.
    server.wait(is_empty)
    server.ask(lambda engine: engine.reset_prefix_cache())

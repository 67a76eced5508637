"""What other servers got wrong, one test each."""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest

from minivllm.bench.servers import free_port
from tests.server.conftest import is_empty
from tests.server.test_api import GREEDY, offline, post, sse

LONG = {"prompt": "leave me", "max_tokens": 180, "temperature": 0, "ignore_eos": True}


def events(server, body):
    """The chunks of a stream, and whether `[DONE]` came."""
    data = sse(post(server, "/v1/completions", body | {"stream": True}).text)
    return [json.loads(each) for each in data if each != "[DONE]"], data[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [None, False, True])
def test_stream_false_is_one_body_and_stream_true_is_events(server, stream):
    """mini-sglang streamed whatever it was asked for, for five months, and no OpenAI client could read it."""
    answer = post(server, "/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": stream})
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind == ("text/event-stream" if stream else "application/json")
    if not stream:
        assert answer.json()["object"] == "text_completion"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["at once", "in the middle"])
def test_a_client_that_leaves_gives_its_blocks_back(server, script, stream, when):
    """vLLM #9428, #7671: the engine went on for clients which had long gone, until their texts were complete."""
    script("x" * 200, seconds=0.03)  # 180 tokens take 5 seconds
    started = server.ask(lambda engine: engine.scheduler.stats.num_steps)
    body = json.dumps(LONG | {"stream": stream}).encode()
    host = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with socket.create_connection(host, timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
        server.wait(lambda engine: engine.scheduler.groups)
        if when == "in the middle":
            server.wait(lambda engine: engine.scheduler.stats.num_steps > started + 5)
    server.wait(is_empty)
    assert server.ask(lambda engine: engine.scheduler.stats.num_steps) < started + 150, "it ran to its end"


def test_an_abort_in_the_engine_ends_in_an_error_and_not_in_done(server, script):
    """vLLM #57082: a stream that the engine had aborted ended as HTTP 200 with `[DONE]`, like a whole answer."""
    script("x" * 200, seconds=0.02)
    stream = server.client().completions.create(model="tiny", prompt="a", max_tokens=150, stream=True)
    with pytest.raises(openai.APIError, match="internal error"):
        for number, _ in enumerate(stream):
            if number == 3:
                server.engine._loop.call_soon_threadsafe(
                    lambda: server.engine._loop.create_task(abort_all(server.engine))
                )
    assert 3 <= number < 149


async def abort_all(engine):
    for name in list(engine._streams):
        await engine.abort(name)


def test_a_step_that_fails_is_an_error_in_the_stream(server, script, monkeypatch):
    """Would catch a stream that just stops, or says `[DONE]`, when the engine has failed."""

    def explode(plan):
        if plan.scheduled[0].start > 3:
            raise ZeroDivisionError("inside")
        return original(plan)

    script("x" * 200)
    original = server.engine.engine.runner.execute_model
    monkeypatch.setattr(server.engine.engine.runner, "execute_model", explode)
    chunks, done = events(server, {"prompt": "a", "max_tokens": 20})
    assert not done and "error" in chunks[-1] and len(chunks) > 1
    assert "inside" not in json.dumps(chunks)


def test_a_character_is_never_cut_between_two_chunks(server, script):
    """Would catch half an emoji in a chunk: the client shows two question marks, or cannot decode it at all."""
    text = "a😀é漢🏳️‍🌈z"
    script(text)
    chunks, _ = events(server, {"prompt": "a", "max_tokens": len(text.encode())})
    pieces = [chunk["choices"][0]["text"] for chunk in chunks]
    assert "".join(pieces) == text and len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("include", [False, True])
def test_no_part_of_a_stop_string_is_ever_shown(server, script, include):
    """Would catch "STO" on the screen before the "P" that ends the text; and a "STARS" that stays hidden."""
    script("The sky STARS and STOP it")
    body = {"prompt": "a", "max_tokens": 30, "stop": ["STOP"], "include_stop_str_in_output": include}
    chunks, _ = events(server, body)
    shown = ""
    for chunk in chunks:
        shown += chunk["choices"][0]["text"]
        assert "The sky STARS and STOP".startswith(shown)
        assert (
            include or not shown.endswith(("S and S", "ST", "STO")) or "STARS".startswith(shown[-3:].strip())
        )
    assert shown == "The sky STARS and " + ("STOP" if include else "")
    last = chunks[-1]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "STOP")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens, reason", [(4, "length"), (5, "stop"), (9, "stop")])
def test_finish_reason_is_length_where_it_was_the_length(server, script, stream, max_tokens, reason):
    """mini-sglang said "stop" at max_tokens too: its clients never learned that the answer had been cut."""
    script("abcd!fghi")
    body = {"prompt": "a", "max_tokens": max_tokens, "stop": "!"}
    if stream:
        chunks, done = events(server, body)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
        assert done and reasons[:-1] == [None] * (len(reasons) - 1)
        assert reasons[-1] == reason
    else:
        assert post(server, "/v1/completions", body).json()["choices"][0]["finish_reason"] == reason


def test_the_usage_chunk_comes_last_and_has_no_choices(server, llm):
    """Would catch load testers that count no tokens: they read this chunk."""
    options = {"include_usage": True}
    chunks = list(
        server.client().completions.create(prompt="Hi", stream=True, stream_options=options, **GREEDY)
    )
    assert chunks[-1].choices == [] and all(chunk.choices for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == 8
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == offline(llm, "Hi")[0].text
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks, _ = events(server, {"prompt": "Hi", "max_tokens": 4, "stream_options": options})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 4


def test_a_step_longer_than_the_keep_alive_keeps_the_connection(server, script, monkeypatch):
    """Would catch a proxy or client that closes a connection on which nothing comes during a long step."""
    script("long steps", seconds=0.3)
    monkeypatch.setattr(server.server.service, "ping_seconds", 0.05)
    answer = post(server, "/v1/completions", {"prompt": "a", "max_tokens": 3, "stream": True})
    assert len(re.findall("^:", answer.text, re.M)) >= 6
    stream = server.client().completions.create(model="tiny", prompt="a", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "lon"


def until(condition, seconds=30):
    """Wait for what `condition()` returns once it is true; the test fails if it never is."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)
    return value


def test_a_client_that_does_not_read_holds_up_no_other(server, llm):
    """Would catch a slow reader that stops the engine, or the event loop, for all others.

    About 100 kB are for it, far more than the buffers hold, which are made small: the server has to wait.
    """
    body = json.dumps(LONG | {"stream": True, "logprobs": 20}).encode()
    host = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with socket.socket() as sleeper:
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sleeper.connect(host)
        connections = server.server.server_state.connections
        here = sleeper.getsockname()
        connection = until(lambda: next((each for each in list(connections) if each.client == here), None))
        with socket.socket(fileno=os.dup(connection.transport.get_extra_info("socket").fileno())) as theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024)
        server.server.loop.call_soon_threadsafe(connection.transport.set_write_buffer_limits, 8192)
        sleeper.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                        + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
        until(lambda: connection.flow.write_paused)
        answer = server.client().completions.create(prompt="quick", **GREEDY)
        assert answer.choices[0].text == offline(llm, "quick")[0].text
        server.wait(is_empty)  # its own text is done as well, read or not
        assert connection.flow.write_paused, "the sleeper has been sent everything"


# -- signals ----------------------------------------------------------------------------------------


def test_sigterm_finishes_what_runs(tiny_llama):
    """Would catch a deployment that cuts every answer which is on its way."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    line = [sys.executable, "-m", "minivllm", "serve", str(tiny_llama), "--num-blocks", "64"]
    line += ["--port", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
        body = {"prompt": "abc", "max_tokens": 400, "ignore_eos": True, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            data = [line for line in lines if line.startswith("data: ")]
        assert data[-1] == "data: [DONE]" and '"finish_reason":"length"' in data[-2]
        process.wait(30)
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_not_finished_in_time_after_sigterm_gets_an_error(start, monkeypatch, stream):
    """Would catch a plain "Internal Server Error", or a stream which just stops, once the patience is over."""
    with start("--shutdown-timeout", "1") as server:
        runner = server.engine.engine.runner
        original = runner.execute_model
        # 180 steps take 18 seconds and more
        monkeypatch.setattr(runner, "execute_model", lambda plan: time.sleep(0.1) or original(plan))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answer = pool.submit(post, server, "/v1/completions", LONG | {"stream": stream})
            server.wait(lambda engine: engine.scheduler.stats.num_steps > 1)
            server.server.handle_exit(signal.SIGTERM, None)
            answer = answer.result(60)
        if stream:
            data = sse(answer.text)
            assert "[DONE]" not in data and len(data) > 1
            error = json.loads(data[-1])["error"]
        else:
            assert answer.status_code == 503 and answer.headers["retry-after"]
            error = answer.json()["error"]
        assert error["type"] == "overloaded_error" and "shutting down" in error["message"]


def test_sigint_twice_stops_at_once(start, monkeypatch):
    """Would catch a Ctrl-C that takes until the last answer is complete, and blocks that are held afterwards."""
    with start() as server:
        runner = server.engine.engine.runner
        original = runner.execute_model
        monkeypatch.setattr(
            runner, "execute_model", lambda plan: time.sleep(0.05) or original(plan)
        )  # 9 s in all
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=60
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            for _ in range(2):
                server.server.handle_exit(signal.SIGINT, None)
            with pytest.raises(httpx.TransportError):
                assert "data: [DONE]" in list(lines), "nothing was cut"
